"""Fresh, overdue, or no data: what a Session's record in Redis proves, and what it does not.

Overdue needs evidence: Redis answered, the watch is unbroken for one whole threshold, the
record is the Session's own, and it is old. Everything else is fresh or no data, and neither
ends anybody. Every time here is of the Redis server's clock.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from gpusession.api.session import Reason, RecordState, SessionSpec
from gpusession.rules.continuity import Watch

LONGEST_USAGE_GAP = timedelta(seconds=180)
"""Agents report once a minute; after three missing reports nothing is known of a GPU."""

SETTLE = timedelta(seconds=1)
"""What a gateway that stood still needs to bring the beats that waited for it: it announces
itself as soon as it runs again, and what its sockets hold follows within its tick."""

NONE = timedelta()


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """A record as far as it is evidence, and the server's clock when it was read."""

    now: datetime
    stage: RecordState = RecordState.ACTIVE
    counter: int = 0
    """Moves with every sign of life; a claim that names an older one is refused."""
    beat: datetime
    first_due: datetime
    """No end by heartbeat before this: opening, initial delay and one threshold."""
    activity: datetime
    busy_until: datetime | None = None
    disconnected: datetime | None = None
    gpu_busy: datetime | None = None
    gpu_seen: datetime | None = None
    gpu_since: datetime | None = None
    pending_until: datetime | None = None
    closed: bool = False
    revoked: bool = False
    doubted: datetime | None = None
    """Last knock with a token that Redis has lost: somebody lives there, unheard."""
    announced: datetime | None = None
    """When the gateway that brought the last beat last showed that it lives; None where it has
    left or its lease has run out, which gives its Sessions a whole threshold."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """A sign of life is young enough."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """Proven silence: why it must end, and since when the proof holds."""

    reason: Reason
    since: datetime


@dataclass(frozen=True, slots=True)
class Unheard:
    """Silent for too long, but something on the way stood still: it may be heard any moment."""


@dataclass(frozen=True, slots=True)
class NoData:
    """Nothing can be said, and why; it ends nobody."""

    why: str


Liveness = Fresh | Overdue | Unheard | NoData


def heartbeat_period(spec: SessionSpec) -> timedelta:
    """Return the period of a client's beats; zero where none is expected."""
    beat = spec.heartbeat
    return NONE if beat is None else timedelta(seconds=beat.period_seconds)


def heartbeat_threshold(spec: SessionSpec) -> timedelta:
    """Return the silence that ends a Session; zero where no beat is expected."""
    beat = spec.heartbeat
    return NONE if beat is None else heartbeat_period(spec) * beat.failure_threshold


def initial_delay(spec: SessionSpec) -> timedelta:
    """Return how long after Active the first beat is due."""
    beat = spec.heartbeat
    return NONE if beat is None else timedelta(seconds=beat.initial_delay_seconds)


def idle_timeout(spec: SessionSpec) -> timedelta:
    """Return how long nobody may use a Session; zero means for ever."""
    return NONE if spec.idle is None else timedelta(seconds=spec.idle.timeout_seconds)


def judged(vitals: Vitals, watch: Watch, spec: SessionSpec) -> Liveness:
    """Judge a record; the first proof counts, disconnects before silence before idleness."""
    if watch.since is None:
        return NoData("Redis is not being watched")
    for proof in (_disconnected(vitals, watch, spec), _silent(vitals, watch, spec)):
        if proof is not None:
            return proof
    return _idle(vitals, watch, spec) or Fresh()


def regrace(spec: SessionSpec) -> timedelta:
    """Return the grace that begins anew where Redis may have lost a return.

    Whoever believes to have returned only beats, so it takes a whole threshold at least.
    """
    return max(timedelta(seconds=spec.destroy_grace_seconds), heartbeat_threshold(spec))


def grace_is_over(vitals: Vitals, watch: Watch, spec: SessionSpec) -> bool:
    """Tell whether a client had the whole grace in which it could have come back.

    Time in which Redis or every gateway was away does not count: nobody could return then.
    If the watch began within the grace, a return may be lost.
    """
    if watch.since is None or watch.heard_since is None or vitals.pending_until is None:
        return False
    grace = timedelta(seconds=spec.destroy_grace_seconds)
    claimed, watched = vitals.pending_until - grace, max(watch.since, watch.heard_since)
    if watched <= claimed:
        return vitals.now >= vitals.pending_until and _was_heard(
            vitals, watch, until=vitals.pending_until
        )
    return vitals.now - watched >= regrace(spec)


def _disconnected(vitals: Vitals, watch: Watch, spec: SessionSpec) -> Overdue | Unheard | None:
    ended, grace = vitals.disconnected, timedelta(milliseconds=spec.disconnect_grace_milliseconds)
    if ended is None or watch.since is None:
        return None
    # One that was noted before the watch may be an older copy's, and a beat contradicts it.
    if ended <= watch.since or vitals.beat > ended:
        return None
    due = max(ended, watch.heard_since or vitals.now, vitals.doubted or ended) + grace
    if vitals.now < due:
        return None
    return Overdue(Reason.DISCONNECTED, due) if _is_steady(vitals, watch) else Unheard()


def _silent(vitals: Vitals, watch: Watch, spec: SessionSpec) -> Overdue | Unheard | None:
    threshold = heartbeat_threshold(spec)
    if threshold <= NONE or watch.since is None or watch.heard_since is None:
        return None
    heard = max(vitals.beat, watch.since, watch.heard_since, vitals.doubted or vitals.beat)
    due = max(heard + threshold, vitals.first_due)
    if vitals.now < due:
        return None
    could_be_heard = _was_heard(vitals, watch, until=due)
    return Overdue(Reason.HEARTBEAT_LOST, due) if could_be_heard else Unheard()


def _was_heard(vitals: Vitals, watch: Watch, *, until: datetime) -> bool:
    """Tell whether a client could have been heard until then: nothing on the way stood still."""
    shown = vitals.announced is None or vitals.announced >= until + SETTLE
    return shown and _is_steady(vitals, watch)


def _is_steady(vitals: Vitals, watch: Watch) -> bool:
    return watch.steady_from is None or vitals.now >= watch.steady_from


def _idle(vitals: Vitals, watch: Watch, spec: SessionSpec) -> Overdue | None:
    timeout = idle_timeout(spec)
    if timeout <= NONE or spec.idle is None or watch.since is None:
        return None
    used = [watch.since]
    if "Client" in spec.idle.signals:
        if watch.heard_since is None:
            return None
        used += [vitals.activity, vitals.busy_until or vitals.activity, watch.heard_since]
        used += [vitals.doubted] if vitals.doubted else []
    if "GPU" in spec.idle.signals:
        seen, since = vitals.gpu_seen, vitals.gpu_since
        if seen is None or since is None or vitals.now - seen > LONGEST_USAGE_GAP:
            return None  # a blind agent is no idle GPU
        used += [vitals.gpu_busy or since, since]
    due = max(used) + timeout
    return Overdue(Reason.IDLE, due) if vitals.now >= due else None
