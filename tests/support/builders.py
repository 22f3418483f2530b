"""Sessions, Pods, Nodes and answers as tests need them: fine unless told otherwise.

One Session `chat` on Pod `chat` (uid p-1) on Node `node-a` (uid n-1), seen at NOW. A test
names only what it is about.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from gpusession.api.cluster import (
    Node,
    NodeSpec,
    ObjectMeta,
    OwnerReference,
    Pod,
    PodSpec,
    PodStatus,
    Taint,
)
from gpusession.api.release import BindReport, ReleaseReport, StateReport, Verdict
from gpusession.api.session import (
    BIND_INTENT_ANNOTATION,
    FINALIZER,
    OVERRIDE_ANNOTATION,
    USE_LABEL,
    ConditionStatus,
    ConditionType,
    Metadata,
    Phase,
    PodRef,
    Reason,
    Session,
    SessionSpec,
    SessionStatus,
)
from gpusession.rules.actions import Action, Intent, Step
from gpusession.rules.conditions import timestamp, with_condition
from gpusession.rules.continuity import Watch
from gpusession.rules.expiry import Fresh, Overdue, Vitals
from gpusession.rules.lifecycle import step
from gpusession.rules.observation import Life, Limits, Observation
from gpusession.rules.outcome import destroyed, pending_destroy, with_release

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GIB = 1 << 30
LIMITS = Limits(pending_report_after=timedelta(seconds=2))

INTENT = Intent("node-a", "p-1")
"""The bind that a Session's annotation names where a test says no other."""


def make_metadata(
    *,
    held: bool = True,
    intent: Intent | None = INTENT,
    deleted: bool = False,
    override_by: str | None = None,
    age: timedelta = timedelta(minutes=5),
    **fields: Any,
) -> Metadata:
    """Give a Session's metadata; `held` means that it carries our finalizer."""
    annotations = {BIND_INTENT_ANNOTATION: None if intent is None else str(intent)}
    annotations[OVERRIDE_ANNOTATION] = override_by
    defaults: dict[str, Any] = {
        "name": "chat",
        "namespace": "lab",
        "uid": "s-1",
        "resource_version": "10",
        "generation": 1,
        "creation_timestamp": timestamp(NOW - age),
        "deletion_timestamp": timestamp(NOW) if deleted else None,
        "finalizers": (FINALIZER,) if held else (),
        "annotations": {key: value for key, value in annotations.items() if value},
    }
    return Metadata(**defaults | fields)


def make_spec(**fields: Any) -> SessionSpec:
    """Give the smallest spec that the CRD takes."""
    return SessionSpec(**{"pod_refs": (PodRef(name="chat"),)} | fields)


def make_status(phase: Phase | None = None, *, was_active: bool = True) -> SessionStatus:
    """Give the status that the operator itself would have written on the way to a phase."""
    if phase in (None, Phase.PENDING):
        return SessionStatus(phase=phase)
    status = SessionStatus(
        phase=Phase.ACTIVE,
        observed_generation=1,
        reason=Reason.BOUND,
        node_name=INTENT.node,
        node_uid="n-1" if was_active else None,
        pod_uid=INTENT.pod_uid,
        active_since=timestamp(NOW) if was_active else None,
    )
    status = with_condition(
        status, ConditionType.READY, ConditionStatus.TRUE, reason=Reason.BOUND, now=NOW
    )
    if phase is Phase.ACTIVE:
        return status
    status = pending_destroy(status, Reason.DELETED, now=NOW)
    if phase is Phase.PENDING_DESTROY:
        return status
    return destroyed(with_release(status, make_release(), now=NOW), now=NOW)


def make_session(
    phase: Phase | None = None,
    *,
    metadata: Metadata | None = None,
    status: SessionStatus | None = None,
    **spec: Any,
) -> Session:
    """Give a Session in a phase; without one it was never looked at."""
    fresh = phase is None and status is None
    return Session(
        metadata=metadata or make_metadata(held=not fresh, intent=None if fresh else INTENT),
        spec=make_spec(**spec),
        status=status or make_status(phase),
    )


def make_pod(
    uid: str = "p-1",
    *,
    phase: str = "Running",
    use: str | None = "exclusive",
    node: str | None = "node-a",
    ends: datetime | None = None,
    grace: timedelta | None = None,
    owner: OwnerReference | None = None,
) -> Pod:
    """Give Pod `chat`; `ends` and `grace` are those of a deletion that runs."""
    return Pod(
        metadata=ObjectMeta(
            name="chat",
            namespace="lab",
            uid=uid,
            labels={} if use is None else {USE_LABEL: use},
            deletion_timestamp=None if ends is None else timestamp(ends),
            deletion_grace_period_seconds=None if grace is None else int(grace.total_seconds()),
            owner_references=() if owner is None else (owner,),
        ),
        spec=PodSpec(node_name=node),
        status=PodStatus(phase=phase, pod_ip="10.0.0.1"),
    )


def make_owner(
    kind: str = "ReplicaSet", *, api_version: str = "apps/v1", name: str = "chat"
) -> OwnerReference:
    """Give the reference to a controller of this kind."""
    return OwnerReference(
        api_version=api_version, kind=kind, name=name, uid=f"{kind}-1", controller=True
    )


def make_node(uid: str = "n-1", *, name: str = "node-a", taints: tuple[str, ...] = ()) -> Node:
    """Give a Node with these taints."""
    return Node(
        metadata=ObjectMeta(name=name, uid=uid),
        spec=NodeSpec(taints=tuple(Taint(key=key) for key in taints)),
    )


def make_bind(**fields: Any) -> BindReport:
    """Give an agent's yes to a bind."""
    seen = {"gpu_uuids": ("GPU-0",), "seen_holding": True, "memory_bytes": GIB}
    return BindReport(**{"bound": True} | seen | fields)


def make_refusal(reason: Reason) -> BindReport:
    """Give an agent's no to a bind."""
    return BindReport(bound=False, reason=reason, message="as the agent says")


def make_clearing(*, cleared: bool = True, keys_cleared: int = 0) -> StateReport:
    """Give what became of the Redis state; not cleared means that Redis did not answer."""
    return StateReport(
        cleared=cleared,
        reason=Reason.CLEARED if cleared else Reason.REDIS_UNAVAILABLE,
        keys_cleared=keys_cleared,
    )


def make_release(verdict: Verdict = Verdict.FREED, **fields: Any) -> ReleaseReport:
    """Give an agent's report on a release."""
    reasons = {Verdict.HELD: Reason.STILL_HELD, Verdict.UNKNOWN: Reason.NOT_OBSERVABLE}
    defaults: dict[str, Any] = {
        "session_uid": "s-1",
        "verdict": verdict,
        "reason": reasons.get(verdict, Reason.FREED),
        "message": "as the agent says",
        "gpu_uuids": ("GPU-0",),
        "seen_holding": True,
        "memory_bytes_before": GIB,
        "state": make_clearing(),
    }
    return ReleaseReport(**defaults | fields)


def make_observation(session: Session, **seen: Any) -> Observation:
    """Give the situation of a Session whose Pod and Node are fine."""
    defaults = {"pod": make_pod(), "node": make_node()}
    return Observation(metadata=session.metadata, spec=session.spec, **defaults | seen)


def decide(session: Session, *, now: datetime = NOW, **seen: Any) -> Step:
    """Take one step in this situation."""
    return step(session.status, make_observation(session, **seen), now=now, limits=LIMITS)


def after(session: Session, decision: Step) -> Session:
    """Give the Session once the status of a decision is written."""
    return msgspec.structs.replace(session, status=decision[0])


def kinds(actions: tuple[Action, ...]) -> tuple[type[Action], ...]:
    """Give the actions without what they carry."""
    return tuple(type(action) for action in actions)


def make_vitals(**fields: Any) -> Vitals:
    """Give the record of a Session that was just heard; times are of the server's clock."""
    defaults: dict[str, Any] = {
        "now": NOW,
        "beat": NOW,
        "first_due": NOW,
        "activity": NOW,
    }
    return Vitals(**defaults | fields)


def make_watch(age: timedelta = timedelta(days=1), *, heard: timedelta | None = None) -> Watch:
    """Give a watch of this age; a gateway has lived for as long, or for `heard`."""
    return Watch(since=NOW - age, heard_since=NOW - (age if heard is None else heard))


def make_life(reason: Reason | None = None, **fields: Any) -> Life:
    """Give what Redis says of the clients: fresh, or overdue for this reason."""
    liveness = Fresh() if reason is None else Overdue(reason, NOW)
    judged = {"vitals": make_vitals(counter=7), "liveness": liveness, "watched_since": NOW}
    return Life(**judged | fields)
