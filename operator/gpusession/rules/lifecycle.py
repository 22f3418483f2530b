"""The product: what happens next to a Session, given everything that is known of it.

`step` never acts. It returns the status as it should be and the effects that lead there;
the worker performs them and asks again. Since each call sees the whole situation, lost,
doubled or reordered events change nothing, and a crash between any two effects only means
that the same decision is taken once more.

                  ┌── a client returns ──┐
                  ▼                      │
    Pending ──► Active ──► PendingDestroy ──► Destroyed
       └──────────────── never bound ─────────────┘
"""

from datetime import datetime, timedelta
from typing import assert_never

import msgspec

from gpusession.api.cluster import Node
from gpusession.api.release import BindReport
from gpusession.api.session import (
    FINALIZER,
    ConditionStatus,
    ConditionType,
    Phase,
    Reason,
    SessionStatus,
)
from gpusession.rules.actions import (
    Announce,
    Bind,
    DeleteSession,
    DropFinalizer,
    ForgetRecord,
    Hold,
    Intent,
    OpenRecord,
    RecordStatus,
    Requeue,
    Step,
    TellClients,
)
from gpusession.rules.binding import pending
from gpusession.rules.conditions import find, with_condition
from gpusession.rules.evidence import end_reason
from gpusession.rules.living import living
from gpusession.rules.observation import Limits, Observation
from gpusession.rules.outcome import pending_destroy
from gpusession.rules.releasing import releasing
from gpusession.rules.returning import is_cancellable, returning


def step(state: SessionStatus, seen: Observation, *, now: datetime, limits: Limits) -> Step:
    """Return the status as it should be and the effects that lead there, in order.

    An empty tuple means that there is nothing to do until something changes.
    """
    state = msgspec.structs.replace(state, observed_generation=seen.metadata.generation)
    match state.phase:
        case None | Phase.PENDING:
            return pending(state, seen, now=now, limits=limits)
        case Phase.ACTIVE:
            return _active(state, seen, now=now)
        case Phase.PENDING_DESTROY:
            if is_cancellable(state):
                return returning(state, seen, now=now)
            return releasing(state, seen, now=now)
        case Phase.DESTROYED:
            return _destroyed(state, seen, now=now)
        case _:
            assert_never(state.phase)


def _active(state: SessionStatus, seen: Observation, *, now: datetime) -> Step:
    if (reason := end_reason(state, seen, now=now)) is not None:
        return pending_destroy(state, reason, now=now), (RecordStatus(), TellClients(reason))
    if FINALIZER not in seen.metadata.finalizers:
        return state, (Hold(None),)  # somebody took it off; a bound Session must not vanish
    if seen.rebind_due and state.node_name and state.pod_uid and seen.bind is None:
        return state, (Bind(Intent(state.node_name, state.pod_uid)), OpenRecord())
    if (decision := living(state, seen, now=now)) is not None:
        return decision
    after = _kept(state, seen, now=now)
    if after == state:
        return state, ()
    ready = find(state, ConditionType.READY)
    changed = ready is not None and ready.observed_generation != state.observed_generation
    # The record holds a copy of the periods and limits of the spec.
    return after, (RecordStatus(), OpenRecord()) if changed else (RecordStatus(),)


def _kept(state: SessionStatus, seen: Observation, *, now: datetime) -> SessionStatus:
    """Enter what was learned of a Session that goes on."""
    after = state
    if state.node_uid is None and isinstance(seen.node, Node):
        after = msgspec.structs.replace(after, node_uid=seen.node.metadata.uid)
    if isinstance(seen.bind, BindReport) and seen.bind.bound:
        after = _with_sightings(after, seen.bind)
    ready = find(state, ConditionType.READY)
    if ready is None or ready.observed_generation != state.observed_generation:
        message = ready.message if ready else ""
        after = with_condition(
            after,
            ConditionType.READY,
            ConditionStatus.TRUE,
            reason=Reason.BOUND,
            message=message,
            now=now,
        )
    return after


def _with_sightings(state: SessionStatus, report: BindReport) -> SessionStatus:
    """Add what a repeated bind knows; nothing that is known is forgotten."""
    gpus = {*state.gpu_uuids, *report.gpu_uuids}
    return msgspec.structs.replace(
        state,
        gpu_uuids=tuple(sorted(gpus)) if gpus != set(state.gpu_uuids) else state.gpu_uuids,
        seen_holding=state.seen_holding or report.seen_holding,
    )


def _destroyed(state: SessionStatus, seen: Observation, *, now: datetime) -> Step:
    if FINALIZER in seen.metadata.finalizers:
        return state, (ForgetRecord(), Announce(), DropFinalizer())
    ttl, finished = seen.spec.ttl_seconds_after_destroyed, find(state, ConditionType.FINISHED)
    if ttl is None or finished is None or seen.metadata.deletion_timestamp is not None:
        return state, ()
    ends = datetime.fromisoformat(finished.last_transition_time) + timedelta(seconds=ttl)
    if now < ends:
        return state, (Requeue(ends - now),)
    return state, (DeleteSession(), Requeue())  # the watch tells when it is gone
