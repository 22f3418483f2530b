"""A whole cluster in a few hundred lines, for the state machine of the lifecycle.

etcd with the CRD's rules, a watch that lags, one Pod name, two Nodes with their machines and
agents, NVML memory, Redis. It performs the actions of `step` as the controller does, and
asserts at each of them what must never happen.
"""

from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto
from typing import Any

import msgspec
from tests.support.builders import GIB, NOW, make_metadata, make_node, make_pod, make_spec

from gpusession.api.cluster import OUT_OF_SERVICE_TAINT, Node, Pod
from gpusession.api.release import COMPLETING, BindReport, Mode, ReleaseReport, StateReport, Verdict
from gpusession.api.session import (
    BIND_INTENT_ANNOTATION,
    FINALIZER,
    OVERRIDE_ANNOTATION,
    ConditionType,
    Phase,
    Reason,
    Session,
    SessionStatus,
)
from gpusession.controller.sessions import SessionCache
from gpusession.rules.actions import (
    Action,
    Announce,
    Bind,
    ClearState,
    DeletePod,
    DeleteSession,
    DropFinalizer,
    ForgetRecord,
    Hold,
    Intent,
    OpenRecord,
    RecordStatus,
    Release,
)
from gpusession.rules.conditions import holds, timestamp
from gpusession.rules.evidence import recorded_node
from gpusession.rules.observation import ABSENT, UNSEEN, Look, Observation, Unreachable

UID = "s-1"
OTHER = "s-other"
NODES = ("node-a", "node-b")

TABLE = {
    None: {None, Phase.PENDING, Phase.ACTIVE, Phase.PENDING_DESTROY, Phase.DESTROYED},
    Phase.PENDING: {Phase.PENDING, Phase.ACTIVE, Phase.PENDING_DESTROY, Phase.DESTROYED},
    Phase.ACTIVE: {Phase.ACTIVE, Phase.PENDING_DESTROY},
    Phase.PENDING_DESTROY: {Phase.PENDING_DESTROY, Phase.DESTROYED},
    Phase.DESTROYED: {Phase.DESTROYED},
}
"""The phase table; the way back from PendingDestroy belongs to clients, who are not here."""


class Lost(Exception):  # noqa: N818 - what happened to the request
    """The visit ends here: a request or its answer was lost, or the object has moved on."""


class Fate(Enum):
    """What becomes of one request."""

    ANSWERED = auto()
    UNANSWERED = auto()
    """It took effect, and nobody was told."""
    LOST = auto()
    DELAYED = auto()
    """Nobody was told, and it takes effect later."""


@dataclass
class Row:
    """What an agent's ledger knows of a Session."""

    pod_uid: str
    done: Verdict | None = None


@dataclass
class Machine:
    """One incarnation of a node: its agent, its ledger, its GPU."""

    on: bool = True
    agent_up: bool = True
    blind: bool = False
    holding: set[str] = field(default_factory=set)
    rows: dict[str, Row] = field(default_factory=dict)
    kills: int = 0

    def owner(self, pod_uid: str) -> str | None:
        """Return the Session that has this Pod."""
        living = (uid for uid, row in self.rows.items() if row.pod_uid == pod_uid and not row.done)
        return next(living, None)


@dataclass
class Found:
    """What a visit has learned from calls."""

    bind: BindReport | Unreachable | None = None
    release: ReleaseReport | Unreachable | None = None
    cleared: StateReport | None = None
    rebind_due: bool = False


class World:
    """Everything outside `step`. Public attributes are there to be broken by a test."""

    def __init__(self, **spec: Any) -> None:
        self.now = NOW
        metadata = make_metadata(held=False, intent=None, age=timedelta(), resource_version="1")
        self._looked_at = Session(metadata=metadata, spec=make_spec(**spec))
        self.current: Session | None = self._looked_at
        self.watch: deque[Session | None] = deque([self.current])
        self.cache = SessionCache()
        self.found = Found()

        self.pod: Pod | None = None
        self.cached_pod: Pod | None = None
        self.nodes: dict[str, Node] = {name: make_node(f"{name}-1", name=name) for name in NODES}
        self.machines = {name: Machine() for name in NODES}
        self.cold = False
        """Whether the caches of Pods and Nodes are empty."""
        self.redis_up = True
        self.api_up = True
        self.keys = True
        self.late: list[tuple[Machine, Bind]] = []

        self.asked = False
        self.troubled: set[str] = set()
        """Pod uids and node names that were ever less than fine."""
        self.pods_made = 0

    # ---- what the controller sees ----

    def deliver(self) -> None:
        """Let the watch bring its oldest event."""
        if self.watch:
            event = self.watch.popleft()
            if event is None:
                self.cache.drop(UID)
            else:
                self.cache.keep(event, watched=True)

    def relist(self) -> None:
        """Start the controller anew: nothing is remembered, everything is listed."""
        self.cache, self.found, self.cold = SessionCache(), Found(), True
        self.watch.clear()
        if self.current is not None:
            self.cache.keep(self.current)

    def look(self) -> tuple[SessionStatus, Observation] | None:
        """Observe as the controller does; None where it knows of no Session."""
        session = self.cache.get(UID)
        if session is None:
            return None
        self._looked_at = session
        over = session.status.phase is Phase.DESTROYED
        return session.status, Observation(
            metadata=session.metadata,
            spec=session.spec,
            pod=UNSEEN if over else self._look_at_pod(session),
            node=UNSEEN if over else self._look_at_node(session),
            bind=self.found.bind,
            release=self.found.release,
            cleared=self.found.cleared,
            rebind_due=self.found.rebind_due,
        )

    def _look_at_pod(self, session: Session) -> Pod | Look:
        bound, known = session.status.pod_uid, self.cached_pod
        if known is not None and not self.cold and bound in (None, known.metadata.uid):
            return known
        return (self.pod or ABSENT) if self.api_up else UNSEEN

    def _look_at_node(self, session: Session) -> Node | Look:
        name = recorded_node(session) or (self.cached_pod and self.cached_pod.spec.node_name)
        if name is None:
            return UNSEEN
        node = self.nodes.get(name)
        uid = session.status.node_uid
        if node is not None and not self.cold and uid in (None, node.metadata.uid):
            return node
        return (node or ABSENT) if self.api_up else UNSEEN

    # ---- what the controller does ----

    def perform(self, action: Action, after: SessionStatus, fate: Fate) -> None:
        """Carry out one action; raises Lost where the visit cannot go on."""
        self.now += timedelta(seconds=1)
        session = self.cache.get(UID) or self._looked_at
        match action:
            case Hold() | RecordStatus() | DropFinalizer() | DeletePod() | DeleteSession():
                self._request(action, session, after, fate)
            case Bind():
                self.found.rebind_due = False
                self.found.bind = self._call_bind(action, fate)
            case Release():
                self._assert_may_release(action.intent)
                self.found.release = self._call_release(action, session, fate)
            case ClearState():
                self.found.cleared = self.clear_state()
            case OpenRecord() | ForgetRecord() | Announce():
                pass

    def _request(self, action: Action, session: Session, after: SessionStatus, fate: Fate) -> None:
        if fate in (Fate.LOST, Fate.DELAYED):
            raise Lost
        match action:
            case Hold(intent):
                self._hold(session, intent)
                self.found.bind = self.found.release = None
            case RecordStatus():
                self._record(session, after)
            case DropFinalizer():
                self._drop_finalizer(session)
            case DeletePod():
                self._delete_pod(action)
        if fate is Fate.UNANSWERED:
            raise Lost
        if self.current is not None:
            self.cache.keep(self.current)

    def _hold(self, seen: Session, intent: Intent | None) -> None:
        current = self._same(seen)
        adds = FINALIZER not in seen.metadata.finalizers
        blank = (adds and not seen.metadata.finalizers) or not seen.metadata.annotations
        moved = current.metadata.resource_version != seen.metadata.resource_version
        if (blank and moved) or (adds and current.metadata.deletion_timestamp):
            self._refuse()
        annotations = dict(current.metadata.annotations)
        if intent is not None:
            annotations[BIND_INTENT_ANNOTATION] = str(intent)
        finalizers = tuple({*current.metadata.finalizers, FINALIZER})
        self.write_metadata(finalizers=finalizers, annotations=annotations)

    def _record(self, seen: Session, after: SessionStatus) -> None:
        current = self._same(seen)
        if after.phase not in TABLE[current.status.phase]:
            assert seen != current, f"{current.status.phase} -> {after.phase}"
            self._refuse()
        if after.phase is Phase.DESTROYED and current.status.phase is not Phase.DESTROYED:
            self._assert_proven(current, after)
        merged = msgspec.to_builtins(current.status) | msgspec.to_builtins(after)
        self._write(msgspec.structs.replace(current, status=msgspec.convert(merged, SessionStatus)))

    def _drop_finalizer(self, seen: Session) -> None:
        current = self._same(seen)
        assert current.status.phase is Phase.DESTROYED
        left = tuple(f for f in current.metadata.finalizers if f != FINALIZER)
        self.write_metadata(finalizers=left)

    def _delete_pod(self, action: DeletePod) -> None:
        self._assert_may_release(Intent("", action.uid))
        assert self.current is not None
        assert self.current.status.active_since, "a Pod that was never ours was deleted"
        assert self.current.status.pod_uid == action.uid, "another Pod was deleted"
        if self.pod is not None and self.pod.metadata.uid == action.uid and self.pod.use:
            self.delete_pod(action.grace)

    def _same(self, seen: Session) -> Session:
        if self.current is None:
            self.cache.drop(UID)
            raise Lost
        assert seen.metadata.uid == self.current.metadata.uid
        return self.current

    def _refuse(self) -> None:
        if self.current is not None:
            self.cache.keep(self.current)
        raise Lost

    def _call_bind(self, action: Bind, fate: Fate) -> BindReport | Unreachable:
        assert self.current is not None
        assert FINALIZER in self.current.metadata.finalizers
        assert self.current.metadata.bind_intent == str(action.intent)
        machine = self.machines[action.intent.node]
        if fate is Fate.DELAYED:
            self.late.append((machine, action))
        if fate in (Fate.LOST, Fate.DELAYED) or not (machine.on and machine.agent_up):
            return Unreachable("no answer")
        report = self.bind(machine, UID, action.intent)
        return report if fate is Fate.ANSWERED else Unreachable("no answer")

    def _call_release(
        self, action: Release, session: Session, fate: Fate
    ) -> ReleaseReport | Unreachable:
        machine = self.machines[action.intent.node]
        if fate in (Fate.LOST, Fate.DELAYED) or not (machine.on and machine.agent_up):
            return Unreachable("no answer")
        report = self._release(machine, action, known=bool(session.status.gpu_uuids))
        return report if fate is Fate.ANSWERED else Unreachable("no answer")

    # ---- the agent ----

    def bind(self, machine: Machine, uid: str, intent: Intent) -> BindReport:
        """Claim the Pod or refuse; one living Session per Pod."""
        pod, row = self.pod, machine.rows.get(uid)
        if machine.blind:
            return _no(Reason.DEVICE_NOT_OBSERVABLE)
        if pod is None or Intent(pod.spec.node_name or "", pod.metadata.uid) != intent:
            return _no(Reason.POD_REPLACED)
        if not self.is_bindable:
            return _no(Reason.POD_NOT_RUNNING)
        if row is not None and row.pod_uid == intent.pod_uid and row.done:
            return _no(Reason.AGENT_REFUSED)
        if machine.owner(intent.pod_uid) not in (None, uid):
            return _no(Reason.POD_IN_USE)
        machine.rows[uid] = Row(intent.pod_uid)
        held = intent.pod_uid in machine.holding
        return BindReport(bound=True, gpu_uuids=("GPU-0",) if held else ())

    def _release(self, machine: Machine, action: Release, *, known: bool) -> ReleaseReport:
        pod_uid, mode = action.intent.pod_uid, action.mode
        owner, row = machine.owner(pod_uid), machine.rows.get(UID)
        assert row is not None or mode is not Mode.END or self._was_active, "never ours"
        if row is None or row.pod_uid != pod_uid:
            assert row is None or row.done, "a row was left alive when its intent moved on"
            row = machine.rows[UID] = Row(pod_uid)
            if mode is Mode.IF_BOUND:
                row.done = Verdict.NOT_BOUND  # and no late bind can come after that
            elif owner is not None and not known:
                row.done = Verdict.NOTHING_HELD
        if row.done and (pod_uid not in machine.holding or owner or row.done is Verdict.NOT_BOUND):
            return self._report(row.done)
        row.done = None
        consents = self.pod is None or self.pod.metadata.uid != pod_uid or self.pod.use
        if mode is not Mode.VERIFY and consents and pod_uid in machine.holding:
            assert machine.owner(pod_uid) in (None, UID), "somebody else's Pod was killed"
            machine.holding.discard(pod_uid)
            machine.kills += 1
        if machine.blind:
            return self._report(Verdict.UNKNOWN)
        if pod_uid in machine.holding:
            return self._report(Verdict.HELD)
        row.done = Verdict.FREED if known else Verdict.NOTHING_HELD
        return self._report(row.done)

    def _report(self, verdict: Verdict) -> ReleaseReport:
        waiting = StateReport(cleared=False, reason=Reason.WAITING_FOR_RELEASE)
        return ReleaseReport(
            session_uid=UID,
            verdict=verdict,
            reason=Reason.FREED if verdict in COMPLETING else Reason.STILL_HELD,
            memory_bytes_before=GIB,
            state=self.clear_state() if verdict in COMPLETING else waiting,
        )

    def clear_state(self) -> StateReport:
        """Clear the Session's Redis keys, if Redis answers."""
        if self.redis_up:
            self.keys = False
        reason = Reason.CLEARED if self.redis_up else Reason.REDIS_UNAVAILABLE
        return StateReport(cleared=self.redis_up, reason=reason)

    # ---- everybody else ----

    @property
    def is_bindable(self) -> bool:
        """Whether the Pod runs and consents."""
        pod = self.pod
        going = pod is None or pod.metadata.deletion_timestamp is not None
        return not going and pod.use == "exclusive" and pod.status.phase == "Running"

    def write_metadata(self, **fields: Any) -> None:
        """Write the Session's metadata, as anybody may."""
        assert self.current is not None
        metadata = msgspec.structs.replace(self.current.metadata, **fields)
        self._write(msgspec.structs.replace(self.current, metadata=metadata))

    def write_spec(self, **fields: Any) -> None:
        """Write the Session's spec, as its user may."""
        assert self.current is not None
        metadata, spec = self.current.metadata, self.current.spec
        metadata = msgspec.structs.replace(metadata, generation=metadata.generation + 1)
        spec = msgspec.structs.replace(spec, **fields)
        self._write(msgspec.structs.replace(self.current, metadata=metadata, spec=spec))

    def _write(self, session: Session) -> None:
        version = str(int(session.metadata.resource_version) + 1)
        metadata = msgspec.structs.replace(session.metadata, resource_version=version)
        gone = metadata.deletion_timestamp is not None and not metadata.finalizers
        self.current = None if gone else msgspec.structs.replace(session, metadata=metadata)
        self.watch.append(self.current)

    def override(self) -> None:
        """Have a human give up."""
        assert self.current is not None
        self.write_metadata(
            annotations=self.current.metadata.annotations | {OVERRIDE_ANNOTATION: "ada"}
        )

    def create_pod(self, node: str) -> None:
        """Create the Pod on a node; it allocates at once where the machine runs."""
        self.pods_made += 1
        uid = f"p-{self.pods_made}"
        self.pod = make_pod(uid, node=node)
        if self.machines[node].on:
            self.machines[node].holding.add(uid)

    def change_pod(self, **status: Any) -> None:
        """Change the Pod's metadata or phase; it counts as trouble."""
        assert self.pod is not None
        self.troubled.add(self.pod.metadata.uid)
        phase = status.pop("phase", self.pod.status.phase)
        metadata = msgspec.structs.replace(self.pod.metadata, **status)
        status_ = msgspec.structs.replace(self.pod.status, phase=phase)
        self.pod = msgspec.structs.replace(self.pod, metadata=metadata, status=status_)

    def delete_pod(self, grace: timedelta) -> None:
        """Ask for the Pod's deletion; a shorter grace than the running one counts."""
        assert self.pod is not None
        self.change_pod(
            deletion_timestamp=timestamp(self.now + grace),
            deletion_grace_period_seconds=int(grace.total_seconds()),
        )

    def end_processes(self) -> None:
        """End what runs in the Pod, wherever it is."""
        for machine in self.machines.values():
            if self.pod is not None:
                machine.holding.discard(self.pod.metadata.uid)

    def remove_pod(self) -> None:
        """Remove the Pod object; its processes are another matter."""
        if self.pod is not None:
            self.troubled.add(self.pod.metadata.uid)
        self.pod = None

    def kubelet_restarts(self) -> None:
        """Start the containers again, as kubelet does while nobody deletes the Pod."""
        pod = self.pod
        if pod is None or pod.metadata.deletion_timestamp or pod.status.phase != "Running":
            return
        machine = self.machines[pod.spec.node_name or ""]
        if machine.on:
            machine.holding.add(pod.metadata.uid)

    def lose_node(self, name: str, *, how: str) -> None:
        """Switch a machine off; its Node is removed, tainted, or comes back as another."""
        self.troubled.add(name)
        self.machines[name].on = False
        self.machines[name].holding.clear()
        if how == "removed":
            self.nodes.pop(name, None)
        elif how == "tainted" and name in self.nodes:
            self.nodes[name] = make_node(
                self.nodes[name].metadata.uid, name=name, taints=(OUT_OF_SERVICE_TAINT,)
            )
        elif how == "replaced":
            self.machines[name] = Machine()
            self.nodes[name] = make_node(f"{name}-{self.now:%H%M%S}", name=name)

    # ---- what must never be ----

    @property
    def _was_active(self) -> bool:
        return self.current is not None and self.current.status.active_since is not None

    @property
    def waived(self) -> bool:
        """Whether it ended on a lost node or on a human's word."""
        release = self.current.status.release if self.current else None
        return release is not None and release.verdict in (Verdict.NODE_GONE, Verdict.OVERRIDDEN)

    def _assert_may_release(self, intent: Intent) -> None:
        fine = not ({intent.pod_uid, intent.node} & self.troubled)
        assert self.asked or not fine, "the living were killed"
        assert self.current is not None
        replaced = intent.pod_uid in self.troubled and not self.current.status.active_since
        durable = self.current.status.phase in (Phase.PENDING_DESTROY, Phase.DESTROYED)
        assert durable or replaced, "released before the end was written"

    def _assert_proven(self, current: Session, after: SessionStatus) -> None:
        assert holds(after, ConditionType.GPU_RELEASED)
        assert holds(after, ConditionType.STATE_CLEARED)
        assert after.release is not None
        assert after.release.verdict in COMPLETING
        if after.release.verdict == Verdict.OVERRIDDEN:
            assert current.metadata.override_by
        elif after.release.verdict == Verdict.NODE_GONE:
            assert after.node_name in self.troubled
        elif after.release.verdict == Verdict.NOT_BOUND:
            assert not self.living_rows
        else:
            assert current.metadata.override_by or not self.keys

    @property
    def living_rows(self) -> list[Row]:
        """Every row of the Session that an agent still answers for."""
        rows = (machine.rows.get(UID) for machine in self.machines.values() if machine.on)
        return [row for row in rows if row is not None and not row.done]


def _no(reason: Reason) -> BindReport:
    return BindReport(bound=False, reason=reason)
