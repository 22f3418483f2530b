"""Pending: what a Session waits for, and how it comes to be bound.

Finalizer and intent are durable before the agent is first called; that is what lets a
Session that never got so far end as NotBound.
"""

from datetime import datetime, timedelta
from typing import assert_never

import msgspec

from gpusession.api.cluster import Node
from gpusession.api.release import COMPLETING, BindReport, ReleaseReport, Verdict
from gpusession.api.session import (
    FINALIZER,
    ConditionStatus,
    ConditionType,
    Phase,
    Reason,
    SessionStatus,
)
from gpusession.rules.actions import (
    Bind,
    Hold,
    Intent,
    OpenRecord,
    RecordStatus,
    Release,
    Requeue,
    Step,
)
from gpusession.rules.conditions import timestamp, with_condition
from gpusession.rules.evidence import (
    asked_to_end,
    node_is_gone,
    recorded_intent,
    release_mode,
    waiting_reason,
    wanted_intent,
)
from gpusession.rules.observation import UNSEEN, Limits, Observation, Unreachable
from gpusession.rules.outcome import destroyed, pending_destroy, with_verdict
from gpusession.rules.owner import with_owner_at_bind


def pending(state: SessionStatus, seen: Observation, *, now: datetime, limits: Limits) -> Step:
    """Decide for a Session that is not bound yet."""
    if (reason := asked_to_end(seen)) is not None:
        return _end_unbound(state, seen, reason, now=now)
    if seen.pod is UNSEEN:
        return state, (Requeue(),)
    age = now - datetime.fromisoformat(seen.metadata.creation_timestamp)
    # Never longer than the limit: our clock may be behind the apiserver's.
    patience = limits.pending_report_after
    young = min(patience, max(timedelta(), patience - age))
    wanted = wanted_intent(seen)
    if FINALIZER not in seen.metadata.finalizers:
        # Finalizer and intent share one write where the Pod has a node in time, so a young
        # Session waits a moment for that. Nothing is begun before.
        return state, (Hold(wanted),) if wanted or not young else (Requeue(young),)
    if (why := waiting_reason(seen)) is not None:
        return _wait(state, why, young=young, now=now)
    if wanted is None or recorded_intent(state, seen) != wanted:
        return _change_intent(state, seen, wanted, now=now)
    return _bind(state, seen, intent=wanted, young=young, now=now)


def _bind(
    state: SessionStatus, seen: Observation, *, intent: Intent, young: timedelta, now: datetime
) -> Step:
    match seen.bind:
        case None:
            return state, (Bind(intent),)
        case Unreachable(message):
            return _wait(state, (Reason.AGENT_UNREACHABLE, message), young=young, now=now)
        case BindReport(bound=False) as refusal:
            return _wait(state, (refusal.reason, refusal.message), young=young, now=now)
        case report:
            return _activate(state, seen, report, intent=intent, now=now)


def _end_unbound(state: SessionStatus, seen: Observation, reason: Reason, *, now: datetime) -> Step:
    ours = FINALIZER in seen.metadata.finalizers
    if reason is Reason.DELETED and not ours:
        return state, ()  # nothing was begun, and the object goes by itself
    intent = recorded_intent(state, seen)
    if intent is not None:
        # A bind may have begun and its answer may be lost: end it as if it were bound.
        state = msgspec.structs.replace(state, node_name=intent.node, pod_uid=intent.pod_uid)
        return pending_destroy(state, reason, now=now), (RecordStatus(),)
    state = pending_destroy(state, reason, now=now)
    state = with_verdict(state, Verdict.NOT_BOUND, now=now)
    if seen.spec.state is not None:
        return state, (RecordStatus(),)  # its keys are cleared from the controller
    state = with_condition(
        state,
        ConditionType.STATE_CLEARED,
        ConditionStatus.TRUE,
        reason=Reason.NOTHING_TO_CLEAR,
        message="the Session has no state",
        now=now,
    )
    return destroyed(state, now=now), (RecordStatus(),)


def _wait(
    state: SessionStatus, why: tuple[Reason, str], *, young: timedelta, now: datetime
) -> Step:
    if young:
        return state, (Requeue(young),)  # most waits are over before anyone reads of them
    before, (reason, message) = state, why
    state = msgspec.structs.replace(state, phase=Phase.PENDING, reason=reason)
    state = with_condition(
        state, ConditionType.READY, ConditionStatus.FALSE, reason=reason, message=message, now=now
    )
    return state, (RecordStatus(), Requeue()) if state != before else (Requeue(),)


def _change_intent(
    state: SessionStatus, seen: Observation, wanted: Intent | None, *, now: datetime
) -> Step:
    recorded = recorded_intent(state, seen)
    if wanted is None or recorded is None:
        return state, (Hold(wanted),)
    # The Pod was replaced after a bind may have begun: prove the old one empty first.
    if node_is_gone(msgspec.structs.replace(state, node_name=recorded.node), seen):
        return state, (Hold(wanted),)  # and no agent is left to ask
    match seen.release:
        case None:
            mode = release_mode(state, seen, now=now)
            return state, (Release(recorded, mode, keeps_state=True),)
        case ReleaseReport(verdict=verdict) if verdict in COMPLETING:
            return state, (Hold(wanted),)
        case ReleaseReport(reason=reason, message=message):
            return _wait(state, (reason, message), young=timedelta(), now=now)
        case Unreachable(message):
            return _wait(state, (Reason.AGENT_UNREACHABLE, message), young=timedelta(), now=now)
        case _:
            assert_never(seen.release)


def _activate(
    state: SessionStatus, seen: Observation, report: BindReport, *, intent: Intent, now: datetime
) -> Step:
    state = msgspec.structs.replace(
        state,
        phase=Phase.ACTIVE,
        reason=Reason.BOUND,
        node_name=intent.node,
        node_uid=seen.node.metadata.uid if isinstance(seen.node, Node) else None,
        pod_uid=intent.pod_uid,
        gpu_uuids=report.gpu_uuids,
        seen_holding=report.seen_holding,
        active_since=timestamp(now),
    )
    state = with_condition(
        state,
        ConditionType.READY,
        ConditionStatus.TRUE,
        reason=Reason.BOUND,
        message=_holding(report),
        now=now,
    )
    state = with_owner_at_bind(state, seen, now=now)
    return state, (RecordStatus(), OpenRecord())


def _holding(report: BindReport) -> str:
    return f"the agent sees {report.memory_bytes} bytes on {len(report.gpu_uuids)} device(s)"
