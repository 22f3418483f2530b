"""PendingDestroy: collect the evidence, and close only when both halves of it are in."""

from datetime import datetime

from gpusession.api.release import Verdict
from gpusession.api.session import ConditionStatus, ConditionType, Reason, SessionStatus
from gpusession.rules.actions import ClearState, Intent, RecordStatus, Release, Requeue, Step
from gpusession.rules.conditions import holds, timestamp, with_condition
from gpusession.rules.evidence import is_out_of_service, node_is_gone, pod_deletion, release_mode
from gpusession.rules.observation import UNSEEN, Observation, Unreachable
from gpusession.rules.outcome import (
    destroyed,
    is_proven,
    with_clearing,
    with_release,
    with_verdict,
)
from gpusession.rules.owner import owner_first, with_owner


def releasing(state: SessionStatus, seen: Observation, *, now: datetime) -> Step:
    """Decide for a Session whose end has begun."""
    if is_proven(state):
        return destroyed(state, now=now), (RecordStatus(),)
    if state.node_name is None or _nobody_can_tell(state, seen):
        return _end_without_agent(state, seen, now=now)
    if seen.release is None:
        if seen.pod is UNSEEN:
            # Only the Pod tells whether it still consents, and whether it must be deleted so
            # that kubelet does not start it again behind the verdict.
            return state, (Requeue(),)
        intent = Intent(state.node_name, state.pod_uid or "")
        deletion = pod_deletion(state, seen)
        release = Release(intent, release_mode(state, seen, now=now))
        if deletion is None:
            return state, (release,)
        if (scaling := owner_first(state, seen, now=now)) is None:
            return state, (Requeue(),)
        return state, (*scaling, deletion, release)
    after = with_owner(state, seen, now=now)
    return _close_or_wait(state, with_release(after, seen.release, now=now), seen, now=now)


def _nobody_can_tell(state: SessionStatus, seen: Observation) -> bool:
    """Tell whether the node is gone, and there is nothing that its agent could still say.

    A Node object may be deleted while the machine lives on; then its agent knows better.
    """
    proven = holds(state, ConditionType.GPU_RELEASED) or is_out_of_service(seen)
    return node_is_gone(state, seen) and (proven or isinstance(seen.release, Unreachable))


def _end_without_agent(state: SessionStatus, seen: Observation, *, now: datetime) -> Step:
    after = with_owner(state, seen, now=now)
    if not holds(state, ConditionType.GPU_RELEASED):
        verdict = Verdict.NODE_GONE if state.node_name else Verdict.NOT_BOUND
        after = with_verdict(after, verdict, now=now)
    if seen.cleared is None:
        return state, (ClearState(),)
    return _close_or_wait(state, with_clearing(after, seen.cleared, now=now), seen, now=now)


def _close_or_wait(
    before: SessionStatus, after: SessionStatus, seen: Observation, *, now: datetime
) -> Step:
    if is_proven(after):
        return destroyed(after, now=now), (RecordStatus(),)
    if (human := seen.metadata.override_by) is not None:
        return destroyed(_overridden(after, human, now=now), now=now), (RecordStatus(),)
    return after, (RecordStatus(), Requeue()) if after != before else (Requeue(),)


def _overridden(state: SessionStatus, human: str, *, now: datetime) -> SessionStatus:
    """Enter a human's word for what is not proven; what is proven stays so."""
    message = f"{human} gave up on the evidence at {timestamp(now)}"
    if not holds(state, ConditionType.GPU_RELEASED):
        state = with_verdict(state, Verdict.OVERRIDDEN, message=message, now=now)
    if not holds(state, ConditionType.STATE_CLEARED):
        state = with_condition(
            state,
            ConditionType.STATE_CLEARED,
            ConditionStatus.TRUE,
            reason=Reason.OVERRIDDEN,
            message=message,
            now=now,
        )
    return state
