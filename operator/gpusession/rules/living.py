"""Active: what silence does, and when; nothing else ends a Session that nobody asked to end."""

from datetime import datetime, timedelta

from gpusession.api.session import (
    ConditionStatus,
    ConditionType,
    Reason,
    RecordState,
    SessionStatus,
)
from gpusession.rules.actions import (
    Claim,
    OpenRecord,
    RecordStatus,
    Reopen,
    Requeue,
    Step,
    TellWouldEnd,
)
from gpusession.rules.conditions import find, with_condition, without_condition
from gpusession.rules.evidence import lifetime_end
from gpusession.rules.expiry import Overdue, Unheard
from gpusession.rules.observation import ABSENT, Claimed, Life, Observation, Outcome
from gpusession.rules.outcome import pending_destroy

SOON = timedelta(seconds=1)
"""Until whoever stood still has been heard again, or is gone: a gateway shows itself as often."""

SHORTEST_GRACE = timedelta(seconds=1)
"""Of a claim that may be taken back; the claim of the release then ends it."""


def living(state: SessionStatus, seen: Observation, *, now: datetime) -> Step | None:
    """Decide on the clients of a bound Session; None where they give no cause for anything."""
    if seen.claimed is not None and seen.claimed.outcome is Outcome.WON:
        return _end(state, seen, seen.claimed, now=now)
    tells = seen.observe_only and not seen.told_would_end
    if tells and (told := _would_end(state, seen, now=now)) is not None:
        return state, (TellWouldEnd(told),)
    if seen.life is ABSENT:
        return state, (OpenRecord(),)  # lost data: everybody starts with a whole threshold
    return _by_record(state, seen, seen.life, now=now) if isinstance(seen.life, Life) else None


def _by_record(
    state: SessionStatus, seen: Observation, life: Life, *, now: datetime
) -> Step | None:
    if life.vitals.stage is not RecordState.ACTIVE:
        return state, (Reopen(),)  # claimed by a life of ours that never wrote it down
    if isinstance(life.liveness, Unheard) and not seen.observe_only:
        return state, (Requeue(SOON),)
    if not isinstance(life.liveness, Overdue) or seen.observe_only:
        return _with_pause(state, None, now=now)
    if life.held is not None:
        return _with_pause(state, life, now=now) if life.pauses else None
    if seen.claimed is not None:
        return None  # a client was heard meanwhile, or Redis was not
    reason, grace = life.liveness.reason, _grace(seen)
    stage = RecordState.PENDING if grace else RecordState.RELEASING
    claim = Claim(stage, reason, grace, life.vitals.counter, life.watched_since)
    return state, (claim,)


def _end(state: SessionStatus, seen: Observation, claimed: Claimed, *, now: datetime) -> Step:
    """Write what was claimed, even if the spec asks for another grace since."""
    grace = timedelta() if claimed.final else max(_grace(seen), SHORTEST_GRACE)
    return pending_destroy(state, claimed.reason, now=now, grace=grace), (RecordStatus(),)


def _grace(seen: Observation) -> timedelta:
    return timedelta(seconds=seen.spec.destroy_grace_seconds)


def _would_end(state: SessionStatus, seen: Observation, *, now: datetime) -> Reason | None:
    ends = lifetime_end(state, seen.spec)
    if ends is not None and now >= ends:
        return Reason.LIFETIME_EXCEEDED
    overdue = isinstance(seen.life, Life) and isinstance(seen.life.liveness, Overdue)
    return seen.life.liveness.reason if overdue else None  # type: ignore[union-attr]


def _with_pause(state: SessionStatus, life: Life | None, *, now: datetime) -> Step | None:
    """Say that the brake holds this Session, or no longer; None where that is said already."""
    paused = find(state, ConditionType.EXPIRY_PAUSED)
    if life is None or life.held is None:
        if paused is None:
            return None
        return without_condition(
            state, ConditionType.EXPIRY_PAUSED, ConditionType.HEARTBEAT_HEALTHY
        ), (RecordStatus(),)
    if paused is not None:
        return None  # what exactly holds it may change by the second
    for kind, status in (
        (ConditionType.EXPIRY_PAUSED, ConditionStatus.TRUE),
        (ConditionType.HEARTBEAT_HEALTHY, ConditionStatus.UNKNOWN),
    ):
        state = with_condition(
            state, kind, status, reason=Reason.MASS_SILENCE, message=life.held, now=now
        )
    return state, (RecordStatus(),)
