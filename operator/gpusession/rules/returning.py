"""PendingDestroy within its grace: a client may come back, and exactly one of both wins.

The claim in Redis decides between them, and the status makes it durable: nothing is released
before the Session itself says Releasing. So a Redis that is lost in between costs a client
nothing: no release has begun, and the grace begins again.
"""

from datetime import datetime, timedelta
from typing import assert_never

import msgspec

from gpusession.api.session import (
    ConditionStatus,
    ConditionType,
    Phase,
    Reason,
    RecordState,
    SessionStatus,
)
from gpusession.rules.actions import (
    Claim,
    OpenRecord,
    RecordStatus,
    Requeue,
    Step,
    TellClients,
)
from gpusession.rules.conditions import find, with_condition, without_condition
from gpusession.rules.evidence import end_reason
from gpusession.rules.observation import ABSENT, Life, Observation, Outcome

SHORTEST_WAIT = timedelta(milliseconds=50)
"""Between two looks at a grace that is about to end."""

WAITS_FOR_REDIS = (
    "the grace is over, but Redis cannot tell whether a client came back: waiting for it"
)

LONGEST_WAIT = timedelta(seconds=1)
"""Where time does not count, since nobody could return: until it does again."""


def is_cancellable(state: SessionStatus) -> bool:
    """Tell whether an end has begun that a returning client may still take back."""
    released = find(state, ConditionType.GPU_RELEASED)
    waits = released is not None and released.reason == Reason.DESTROY_GRACE
    return waits and state.phase is Phase.PENDING_DESTROY


def returning(state: SessionStatus, seen: Observation, *, now: datetime) -> Step:
    """Decide for a Session in its grace."""
    claim = seen.claimed if seen.claimed is not None and seen.claimed.final else None
    won = claim is not None and claim.outcome is Outcome.WON
    given_up = seen.metadata.override_by is not None
    reason = end_reason(state, seen, now=now)
    if reason is not None or won or given_up:
        return _committed(state, reason or Reason(state.reason), now=now)
    if seen.life is ABSENT:
        return state, (OpenRecord(), Requeue(LONGEST_WAIT))
    if not isinstance(seen.life, Life):
        return _unseen(state, now=now)
    return _by_record(state, seen, seen.life, now=now)


def _by_record(state: SessionStatus, seen: Observation, life: Life, *, now: datetime) -> Step:
    match life.vitals.stage:
        case RecordState.ACTIVE:
            return _resumed(state, now=now)
        case RecordState.PENDING if not life.grace_over:
            return state, (Requeue(_wait(life)),)
        case RecordState.PENDING if seen.claimed is not None and seen.claimed.final:
            return state, (Requeue(),)
        case RecordState.PENDING:
            # The counter, for whoever returned since the look has won.
            counter, since = life.vitals.counter, life.watched_since
            claim = Claim(RecordState.RELEASING, Reason(state.reason), timedelta(), counter, since)
            return state, (claim,)
        case RecordState.RELEASING | RecordState.GONE:
            return _committed(state, Reason(state.reason), now=now)
        case _:
            assert_never(life.vitals.stage)


def _unseen(state: SessionStatus, *, now: datetime) -> Step:
    """Wait for Redis; say so once the end is overdue by it."""
    due = state.destroy_after is not None and now >= datetime.fromisoformat(state.destroy_after)
    said = find(state, ConditionType.GPU_RELEASED)
    if not due or said is None or said.message == WAITS_FOR_REDIS:
        return state, (Requeue(),)
    state = with_condition(
        state,
        ConditionType.GPU_RELEASED,
        ConditionStatus.FALSE,
        reason=Reason.DESTROY_GRACE,
        message=WAITS_FOR_REDIS,
        now=now,
    )
    return state, (RecordStatus(), Requeue())


def _committed(state: SessionStatus, reason: Reason, *, now: datetime) -> Step:
    """Make it final: from here on a release may have begun."""
    state = msgspec.structs.replace(state, reason=reason)
    for kind, status, why in (
        (ConditionType.READY, ConditionStatus.FALSE, reason),
        (ConditionType.PENDING_DESTROY, ConditionStatus.TRUE, reason),
        (ConditionType.GPU_RELEASED, ConditionStatus.FALSE, Reason.RELEASING),
    ):
        state = with_condition(state, kind, status, reason=why, now=now)
    return state, (RecordStatus(), TellClients(reason))


def _resumed(state: SessionStatus, *, now: datetime) -> Step:
    """Go back to Active: a client has returned in time."""
    state = msgspec.structs.replace(
        state,
        phase=Phase.ACTIVE,
        reason=Reason.BOUND,
        pending_destroy_since=None,
        destroy_after=None,
    )
    state = without_condition(
        state,
        ConditionType.PENDING_DESTROY,
        ConditionType.GPU_RELEASED,
        ConditionType.STATE_CLEARED,
        ConditionType.HEARTBEAT_HEALTHY,
    )
    message = "a client came back within destroyGraceSeconds"
    for kind, why in (
        (ConditionType.READY, Reason.BOUND),
        (ConditionType.HEARTBEAT_HEALTHY, Reason.CLIENT_RETURNED),
    ):
        state = with_condition(
            state, kind, ConditionStatus.TRUE, reason=why, message=message, now=now
        )
    return state, (RecordStatus(),)


def _wait(life: Life) -> timedelta:
    until = life.vitals.pending_until
    left = LONGEST_WAIT if until is None else until - life.vitals.now
    return max(SHORTEST_WAIT, left) if left > timedelta() else LONGEST_WAIT
