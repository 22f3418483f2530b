"""What the facts prove: may it bind, must it end, and how far may a release go.

Each answer is None where nothing is proven. Missing data proves nothing.
"""

from datetime import datetime, timedelta

from gpusession.api.cluster import OUT_OF_SERVICE_TAINT, Node, Pod
from gpusession.api.release import Mode
from gpusession.api.session import (
    OnRelease,
    Phase,
    Reason,
    Session,
    SessionSpec,
    SessionStatus,
    Use,
)
from gpusession.rules.actions import DeletePod, Intent
from gpusession.rules.observation import ABSENT, Life, Observation

ENDED_POD_PHASES = frozenset({"Succeeded", "Failed"})

SHORTEST_POD_GRACE = timedelta(seconds=1)
"""Grace 0 would remove the Pod object before kubelet has ended anything."""


def wanted_intent(seen: Observation) -> Intent | None:
    """Return what a bind would claim now: the Pod has consented, its node has an agent.

    Without an agent there is no intent: nothing can begin, so nothing needs proof later.
    """
    pod = seen.pod
    if not isinstance(pod, Pod) or pod.use != Use.EXCLUSIVE or not pod.spec.node_name:
        return None
    if not seen.agent_known:
        return None
    return Intent(pod.spec.node_name, pod.metadata.uid)


def recorded_node(session: Session) -> str | None:
    """Return the node of the bind that has or may have begun."""
    intent = Intent.parse(session.metadata.bind_intent)
    return session.status.node_name or (intent.node if intent else None)


def recorded_intent(state: SessionStatus, seen: Observation) -> Intent | None:
    """Return the bind that may have begun, from the status or else the annotation."""
    if state.node_name and state.pod_uid:
        return Intent(state.node_name, state.pod_uid)
    return Intent.parse(seen.metadata.bind_intent)


def waiting_reason(seen: Observation) -> tuple[Reason, str] | None:
    """Say why the Pod cannot be bound yet, or None when it can."""
    name, pod = seen.spec.pod_refs[0].name, seen.pod
    if not isinstance(pod, Pod):
        return Reason.POD_NOT_FOUND, f"there is no Pod {name} in this namespace yet"
    if pod.use == Use.SHARED:
        return Reason.SHARED_NOT_SUPPORTED, (
            f"Pod {name} is labelled shared; this version binds only exclusive Pods"
        )
    if pod.use != Use.EXCLUSIVE:
        return Reason.POD_NOT_MANAGED, (
            f"Pod {name} did not opt in: label it gpusession.dev/use=exclusive"
        )
    if not pod.spec.node_name:
        return Reason.POD_UNSCHEDULED, f"Pod {name} has no node yet"
    if pod.status.phase != "Running" or pod.metadata.deletion_timestamp is not None:
        return Reason.POD_NOT_RUNNING, (
            f"Pod {name} is not running: its phase is {pod.status.phase}"
            + (", and it is being deleted" if pod.metadata.deletion_timestamp else "")
        )
    if not seen.agent_known:
        return Reason.AGENT_UNREACHABLE, f"no agent runs on node {pod.spec.node_name}"
    return None


def asked_to_end(seen: Observation) -> Reason | None:
    """Return Deleted or ExplicitClose where someone has asked for the end."""
    if seen.metadata.deletion_timestamp is not None:
        return Reason.DELETED
    return Reason.EXPLICIT_CLOSE if seen.spec.desired_phase is Phase.DESTROYED else None


def asked_by_client(seen: Observation) -> Reason | None:
    """Return Revoked or ExplicitClose where the gateway's side has asked for the end."""
    vitals = seen.life.vitals if isinstance(seen.life, Life) else None
    if seen.metadata.is_revoked or (vitals and vitals.revoked):
        return Reason.REVOKED
    return Reason.EXPLICIT_CLOSE if vitals and vitals.closed else None


def lifetime_end(state: SessionStatus, spec: SessionSpec) -> datetime | None:
    """Return when a bound Session's longest lifetime is over; it needs no Redis."""
    since = state.active_since
    if since is None:
        return None
    return datetime.fromisoformat(since) + timedelta(seconds=spec.max_lifetime_seconds)


def end_reason(state: SessionStatus, seen: Observation, *, now: datetime) -> Reason | None:
    """Return why a bound Session must end whatever its clients do, or None."""
    if (asked := asked_to_end(seen) or asked_by_client(seen)) is not None:
        return asked
    if (lost := _lost(state, seen)) is not None:
        return lost
    ends = lifetime_end(state, seen.spec)
    over = ends is not None and now >= ends
    return Reason.LIFETIME_EXCEEDED if over and not seen.observe_only else None


def _lost(state: SessionStatus, seen: Observation) -> Reason | None:
    if node_is_gone(state, seen):
        return Reason.NODE_GONE
    if seen.pod is ABSENT:
        return Reason.POD_GONE
    if isinstance(seen.pod, Pod):
        if seen.pod.metadata.uid != state.pod_uid:
            return Reason.POD_REPLACED
        if seen.pod.status.phase in ENDED_POD_PHASES:
            return Reason.POD_TERMINATED
    return None


def node_is_gone(state: SessionStatus, seen: Observation) -> bool:
    """Tell whether the recorded Node is deleted, replaced, or declared out of service."""
    if seen.node is ABSENT:
        return state.node_name is not None
    if not isinstance(seen.node, Node) or seen.node.metadata.name != state.node_name:
        return False
    replaced = state.node_uid is not None and seen.node.metadata.uid != state.node_uid
    return replaced or is_out_of_service(seen)


def is_out_of_service(seen: Observation) -> bool:
    """Tell whether somebody has declared that nothing runs on the Node any more."""
    taints = seen.node.spec.taints if isinstance(seen.node, Node) else ()
    return any(taint.key == OUT_OF_SERVICE_TAINT for taint in taints)


def release_mode(state: SessionStatus, seen: Observation, *, now: datetime) -> Mode:
    """Say whether the ladder may signal.

    It may not where the living Pod has withdrawn its consent, nor while a deletion that
    someone else asked for still runs its own, longer grace. What never became Active is
    left to the ledger: its bind may have been refused.
    """
    pod = own_pod(state, seen)
    if pod is not None and _foreign_grace_runs(pod, seen, now=now):
        return Mode.VERIFY
    if state.active_since is None:
        return Mode.IF_BOUND
    return Mode.VERIFY if pod is not None and pod.use != Use.EXCLUSIVE else Mode.END


def pod_deletion(state: SessionStatus, seen: Observation) -> DeletePod | None:
    """Return the deletion that keeps kubelet from restarting what the ladder ends."""
    pod, ref = own_pod(state, seen), seen.spec.pod_refs[0]
    if pod is None or pod.use != Use.EXCLUSIVE or state.active_since is None:
        return None
    if ref.on_release is OnRelease.NONE or pod.metadata.deletion_timestamp is not None:
        return None
    return DeletePod(ref.name, pod.metadata.uid, pod_grace(seen))


def own_pod(state: SessionStatus, seen: Observation) -> Pod | None:
    """Return the Pod only if it is the very one that was bound."""
    pod = seen.pod
    return pod if isinstance(pod, Pod) and pod.metadata.uid == state.pod_uid else None


def pod_grace(seen: Observation) -> timedelta:
    """Return the grace of our own Pod deletion."""
    return max(SHORTEST_POD_GRACE, timedelta(seconds=seen.spec.termination_grace_period_seconds))


def _foreign_grace_runs(pod: Pod, seen: Observation, *, now: datetime) -> bool:
    # deletionTimestamp is the end of the grace, not the moment of the request. A grace no
    # longer than ours is as good as our own deletion, which makes this hold after a crash
    # between our DELETE and the release.
    ends, grace = pod.metadata.deletion_timestamp, pod.metadata.deletion_grace_period_seconds
    if ends is None or grace is None or timedelta(seconds=grace) <= pod_grace(seen):
        return False
    return now < datetime.fromisoformat(ends)
