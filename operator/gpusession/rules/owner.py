"""Who makes the Pod again, and may it be scaled down before the Pod is deleted.

An owner is scaled only where the replica that goes is certain to be this Pod. Everywhere
else the Pod alone is deleted, and the condition says what is missing.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple, assert_never

from gpusession.api.cluster import OwnerReference, Pod
from gpusession.api.session import (
    ConditionStatus,
    ConditionType,
    OnRelease,
    Reason,
    SessionSpec,
    SessionStatus,
    Use,
)
from gpusession.rules.actions import ScaleOwner
from gpusession.rules.conditions import find, with_condition
from gpusession.rules.evidence import ENDED_POD_PHASES, own_pod
from gpusession.rules.observation import UNSEEN, Look, Observation, Owner, Unscaled

PATIENCE = timedelta(seconds=30)
"""How long a silent apiserver or a conflict holds up the release: GPU memory is held meanwhile."""

OWNED_BY = {
    "ReplicaSet": Reason.OWNED_BY_REPLICA_SET,
    "StatefulSet": Reason.OWNED_BY_STATEFUL_SET,
    "ReplicationController": Reason.OWNED_BY_REPLICATION_CONTROLLER,
    "DaemonSet": Reason.OWNED_BY_DAEMON_SET,
    "Job": Reason.OWNED_BY_JOB,
}
"""The reason per kind; every other kind is OwnedByOther."""


class _Told(NamedTuple):
    """What OwnerWillRecreate says."""

    status: ConditionStatus
    reason: Reason
    message: str


def concerns_owner(state: SessionStatus, spec: SessionSpec, pod: Pod) -> bool:
    """Tell whether the Pod's owner must be looked at: it is to be scaled, and time has come."""
    return (
        state.pending_destroy_since is not None
        and state.active_since is not None
        and spec.pod_refs[0].on_release is OnRelease.SCALE_OWNER
        and pod.metadata.uid == state.pod_uid
        and pod.metadata.controller is not None
        and pod.use == Use.EXCLUSIVE
    )


def living_others(pods: Iterable[Pod], uid: str) -> int:
    """Count the Pods beside this one that neither have ended nor are being deleted."""
    return sum(
        pod.metadata.uid != uid
        and pod.metadata.deletion_timestamp is None
        and pod.status.phase not in ENDED_POD_PHASES
        for pod in pods
    )


def replicas_before(pod: str, stateful_set: str, *, start: int) -> int | None:
    """Return how many replicas a StatefulSet has below this Pod; None for a foreign name."""
    name, _, ordinal = pod.rpartition("-")
    if name != stateful_set or not ordinal.isdecimal() or int(ordinal) < start:
        return None
    return int(ordinal) - start


def not_scalable(owner: OwnerReference) -> Unscaled:
    """Say that an owner of this kind is not scaled by us."""
    return Unscaled(
        Reason.OWNER_NOT_SCALABLE,
        f"{_named(owner)} makes another Pod and is not scaled by this version; delete it instead",
    )


def owner_first(
    state: SessionStatus, seen: Observation, *, now: datetime
) -> tuple[ScaleOwner, ...] | None:
    """Return what must precede the deletion of the Pod; None where that is not known yet.

    Decided from what is seen alone: once the replicas are down there is nothing left to do,
    so a repeat after a crash takes no second one away.
    """
    pod = own_pod(state, seen)
    if pod is None or not concerns_owner(state, seen.spec, pod):
        return ()
    since = datetime.fromisoformat(state.pending_destroy_since or "")
    late = now - since >= PATIENCE
    if seen.owner is UNSEEN:
        return () if late else None
    if not isinstance(seen.owner, Owner) or pod.status.phase in ENDED_POD_PHASES:
        return ()  # a Pod that has ended is no replica any more: another may live in its place
    takes_only_ours = seen.owner.replicas == seen.owner.spared + 1 and not seen.owner.others
    return (ScaleOwner(seen.owner, last_try=late),) if takes_only_ours else ()


def with_owner_at_bind(state: SessionStatus, seen: Observation, *, now: datetime) -> SessionStatus:
    """Say in advance that deleting the Pod will not free its GPU for long."""
    owner = seen.pod.metadata.controller if isinstance(seen.pod, Pod) else None
    on_release = seen.spec.pod_refs[0].on_release
    if owner is None or on_release is OnRelease.NONE:
        return state
    if on_release is OnRelease.SCALE_OWNER:
        if owner.is_scalable:
            return state
        return _entered(state, _unscaled(not_scalable(owner)), now=now)
    way = "create the Session with onRelease ScaleOwner, or " if owner.is_scalable else ""
    told = _Told(
        ConditionStatus.TRUE,
        OWNED_BY.get(owner.kind, Reason.OWNED_BY_OTHER),
        f"{_named(owner)} makes another Pod when this one is deleted; {way}delete the owner",
    )
    return _entered(state, told, now=now)


def with_owner(state: SessionStatus, seen: Observation, *, now: datetime) -> SessionStatus:
    """Enter what was seen of the owner at the end; without a look nothing is said."""
    told = _told(state, seen)
    return state if told is None else _entered(state, told, now=now)


def _entered(state: SessionStatus, told: _Told, *, now: datetime) -> SessionStatus:
    return with_condition(
        state,
        ConditionType.OWNER_WILL_RECREATE,
        told.status,
        reason=told.reason,
        message=told.message,
        now=now,
    )


def _told(state: SessionStatus, seen: Observation) -> _Told | None:
    match seen.owner:
        case Owner():
            return _of_owner(seen.owner, scaled=seen.scaled)
        case Unscaled():
            return _unscaled(seen.owner)
        case Look.UNSEEN:
            return _unseen(state, seen)
        case Look.ABSENT:
            return _Told(ConditionStatus.FALSE, Reason.OWNER_GONE, "the Pod's owner is gone")
        case _:
            assert_never(seen.owner)


def _unscaled(why: Unscaled) -> _Told:
    return _Told(ConditionStatus.TRUE, why.reason, why.message)


def _unseen(state: SessionStatus, seen: Observation) -> _Told | None:
    pod = own_pod(state, seen)
    if pod is None or not concerns_owner(state, seen.spec, pod):
        return None
    if find(state, ConditionType.OWNER_WILL_RECREATE) is not None:
        return None
    message = "the apiserver did not tell of the Pod's owner"
    return _Told(ConditionStatus.UNKNOWN, Reason.OWNER_NOT_OBSERVABLE, message)


def _of_owner(owner: Owner, *, scaled: bool) -> _Told:
    name = _named(owner.reference)
    if owner.replicas <= owner.spared:
        if owner.owned_by is None:
            message = f"{name} is scaled to {owner.replicas}"
            return _Told(ConditionStatus.FALSE, Reason.OWNER_SCALED, message)
        message = f"{name} is scaled to {owner.replicas}; {_named(owner.owned_by)} may undo that"
        return _Told(ConditionStatus.UNKNOWN, Reason.OWNER_HAS_OWNER, message)
    if scaled:
        message = f"{name} was scaled to {owner.spared}, and somebody has scaled it up again"
        return _Told(ConditionStatus.TRUE, Reason.OWNER_SCALED_UP, message)
    if owner.others or owner.replicas > owner.spared + 1:
        message = (
            f"{name} has other Pods, and scaling it down could end one of those; only this Pod "
            "was deleted: give a Session an owner with one replica"
        )
        return _Told(ConditionStatus.TRUE, Reason.OWNER_HAS_OTHER_PODS, message)
    message = (
        f"{name} was not scaled down: its Pod was ending already, or the apiserver did not take "
        "the write"
    )
    return _Told(ConditionStatus.TRUE, Reason.OWNER_NOT_SCALED, message)


def _named(owner: OwnerReference) -> str:
    return f"{owner.kind} {owner.name}"
