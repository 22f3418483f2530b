"""What a release or a clearing proves, as conditions: True only on evidence."""

from datetime import datetime, timedelta

import msgspec

from gpusession.api.release import COMPLETING, ReleaseReport, StateReport, Verdict
from gpusession.api.session import (
    ConditionStatus,
    ConditionType,
    Phase,
    Reason,
    ReleaseStatus,
    SessionStatus,
)
from gpusession.rules.conditions import holds, timestamp, with_condition, without_condition
from gpusession.rules.observation import Unreachable

REASON_OF = {
    Verdict.FREED: Reason.FREED,
    Verdict.NOTHING_HELD: Reason.NOTHING_HELD,
    Verdict.REFERENCE_DROPPED: Reason.REFERENCE_DROPPED,
    Verdict.NODE_GONE: Reason.NODE_GONE,
    Verdict.NOT_BOUND: Reason.NOT_BOUND,
    Verdict.OVERRIDDEN: Reason.OVERRIDDEN,
}
"""The reason of GPUReleased=True, per completing verdict."""

SENTENCE_OF = {
    Verdict.FREED: "NVML showed the memory held, and shows it free",
    Verdict.NOTHING_HELD: "NVML could see the device and never showed this Pod holding memory",
    Verdict.REFERENCE_DROPPED: "the Pod is shared; this Session's reference was dropped",
    Verdict.NODE_GONE: "the node is gone, and its GPU memory with it",
    Verdict.NOT_BOUND: "no bind was ever begun",
}
"""The message of GPUReleased=True where no agent tells more; OVERRIDDEN names its human."""


def with_release(
    state: SessionStatus, answer: ReleaseReport | Unreachable, *, now: datetime
) -> SessionStatus:
    """Enter what the agent said, or that it said nothing."""
    # What was proven stays proven where nobody could look: only the clearing still waits.
    # A look that finds something held again is another matter.
    released = holds(state, ConditionType.GPU_RELEASED)
    waiting = ConditionType.STATE_CLEARED if released else ConditionType.GPU_RELEASED
    if isinstance(answer, Unreachable):
        return with_condition(
            state,
            waiting,
            ConditionStatus.UNKNOWN,
            reason=Reason.AGENT_UNREACHABLE,
            message=answer.message,
            now=now,
        )
    if answer.verdict not in COMPLETING:
        blind = answer.verdict is Verdict.UNKNOWN
        return with_condition(
            state,
            waiting if blind else ConditionType.GPU_RELEASED,
            ConditionStatus.UNKNOWN if blind else ConditionStatus.FALSE,
            reason=answer.reason,
            message=answer.message,
            now=now,
        )
    state = msgspec.structs.replace(
        state,
        gpu_uuids=answer.gpu_uuids or state.gpu_uuids,
        seen_holding=answer.seen_holding or state.seen_holding,
        release=ReleaseStatus(
            verdict=answer.verdict,
            memory_bytes_before=answer.memory_bytes_before,
            memory_bytes_after=answer.memory_bytes_after,
            keys_cleared=state.release.keys_cleared if state.release else 0,
            attempts=answer.attempts,
            stages=answer.stages,
        ),
    )
    state = with_verdict(state, answer.verdict, now=now, message=answer.message)
    return with_clearing(state, answer.state, now=now)


def with_verdict(
    state: SessionStatus, verdict: Verdict, *, now: datetime, message: str = ""
) -> SessionStatus:
    """Enter a completing verdict."""
    release = state.release or ReleaseStatus(verdict=verdict)
    state = msgspec.structs.replace(
        state, release=msgspec.structs.replace(release, verdict=verdict)
    )
    return with_condition(
        state,
        ConditionType.GPU_RELEASED,
        ConditionStatus.TRUE,
        reason=REASON_OF[verdict],
        message=message or SENTENCE_OF.get(verdict, ""),
        now=now,
    )


def with_clearing(state: SessionStatus, report: StateReport, *, now: datetime) -> SessionStatus:
    """Enter what became of the Redis state; needs a completing verdict entered before."""
    if state.release is not None:
        cleared = max(state.release.keys_cleared, report.keys_cleared)
        state = msgspec.structs.replace(
            state, release=msgspec.structs.replace(state.release, keys_cleared=cleared)
        )
    return with_condition(
        state,
        ConditionType.STATE_CLEARED,
        ConditionStatus.TRUE if report.cleared else ConditionStatus.FALSE,
        reason=report.reason,
        message=report.message,
        now=now,
    )


def is_proven(state: SessionStatus) -> bool:
    """Tell whether both halves of the evidence are in."""
    return holds(state, ConditionType.GPU_RELEASED) and holds(state, ConditionType.STATE_CLEARED)


def destroyed(state: SessionStatus, *, now: datetime) -> SessionStatus:
    """Close the books; callers have checked `is_proven`."""
    state = without_condition(state, ConditionType.READY, ConditionType.PENDING_DESTROY)
    state = with_condition(
        state,
        ConditionType.FINISHED,
        ConditionStatus.TRUE,
        reason=state.reason,
        now=now,
    )
    return msgspec.structs.replace(state, phase=Phase.DESTROYED)


def pending_destroy(
    state: SessionStatus, reason: Reason, *, now: datetime, grace: timedelta = timedelta()
) -> SessionStatus:
    """Open the end: what follows can be read off the conditions at every moment.

    With a grace nothing is released before it is over, and a client may come back.
    """
    state = msgspec.structs.replace(
        state,
        phase=Phase.PENDING_DESTROY,
        reason=reason,
        pending_destroy_since=timestamp(now),
        destroy_after=timestamp(now + grace),
    )
    if reason is Reason.HEARTBEAT_LOST:
        state = with_condition(
            state, ConditionType.HEARTBEAT_HEALTHY, ConditionStatus.FALSE, reason=reason, now=now
        )
    state = without_condition(state, ConditionType.EXPIRY_PAUSED)
    for kind, status, why in (
        (ConditionType.READY, ConditionStatus.FALSE, reason),
        (ConditionType.PENDING_DESTROY, ConditionStatus.TRUE, reason),
        (ConditionType.STATE_CLEARED, ConditionStatus.FALSE, Reason.WAITING_FOR_RELEASE),
    ):
        state = with_condition(state, kind, status, reason=why, now=now)
    waits = Reason.DESTROY_GRACE if grace else Reason.RELEASING
    return with_condition(
        state, ConditionType.GPU_RELEASED, ConditionStatus.FALSE, reason=waits, now=now
    )
