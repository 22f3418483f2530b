"""What is really there: a Pod, two Nodes with their machines, agents, GPU memory, Redis.

The agent keeps the promises of api/release.py: one living Session per Pod, a repeat answers
the same, NotBound leaves a row behind that refuses a late bind.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
from tests.support.builders import GIB, NOW, make_node, make_owner, make_pod

from gpusession.api.cluster import OUT_OF_SERVICE_TAINT, Node, Pod
from gpusession.api.release import COMPLETING, BindReport, Mode, ReleaseReport, StateReport, Verdict
from gpusession.api.session import Reason
from gpusession.rules.actions import Intent, Release
from gpusession.rules.conditions import timestamp

UID = "s-1"
NODES = ("node-a", "node-b")


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

    def owner(self, pod_uid: str) -> str | None:
        """Return the Session that has this Pod."""
        living = (uid for uid, row in self.rows.items() if row.pod_uid == pod_uid and not row.done)
        return next(living, None)


class Cluster:
    """Everything but the Session. Public attributes are there to be broken by a test."""

    def __init__(self) -> None:
        self.now = NOW
        self.pod: Pod | None = None
        self.nodes: dict[str, Node] = {name: make_node(f"{name}-1", name=name) for name in NODES}
        self.machines = {name: Machine() for name in NODES}
        self.redis_up = True
        self.keys = True
        self.troubled: set[str] = set()
        """Pod uids and node names that were ever less than fine."""
        self.pods_made = 0
        self.owned = False
        """Whether a ReplicaSet makes the Pods."""
        self.replicas = 1
        self.owner_version = 0
        self.rival = False
        """Whether the ReplicaSet has another living Pod."""
        self.may_recreate = False
        """Whether there ever was a reason to leave the ReplicaSet as it is."""

    # ---- the agents ----

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
        return BindReport(bound=True, gpu_uuids=("GPU-0",), seen_holding=held)

    def release(
        self, machine: Machine, action: Release, *, known: bool, was_active: bool
    ) -> ReleaseReport:
        """Do what the order says, as far as ledger and Pod allow; a repeat answers the same."""
        pod_uid, mode = action.intent.pod_uid, action.mode
        owner, row = machine.owner(pod_uid), machine.rows.get(UID)
        assert row is not None or mode is not Mode.END or was_active, "never ours"
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

    # ---- Pods and Nodes ----

    @property
    def is_bindable(self) -> bool:
        """Whether the Pod runs and consents."""
        pod = self.pod
        going = pod is None or pod.metadata.deletion_timestamp is not None
        return not going and pod.use == "exclusive" and pod.status.phase == "Running"

    def create_pod(self, node: str) -> None:
        """Create the Pod on a node; it allocates at once where the machine runs."""
        self.pods_made += 1
        uid = f"p-{self.pods_made}"
        self.pod = make_pod(uid, node=node, owner=make_owner() if self.owned else None)
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

    def scale(self, replicas: int) -> None:
        """Change what the ReplicaSet wants; it is another version from then on."""
        self.replicas, self.owner_version = replicas, self.owner_version + 1

    def owner_acts(self, node: str) -> None:
        """Let the ReplicaSet come closer to what it wants, as its controller does."""
        going = self.pod is None or self.pod.metadata.deletion_timestamp is not None
        if not self.replicas and not going:
            self.delete_pod(timedelta(seconds=30))
        elif self.replicas and self.pod is None:
            self.create_pod(node)

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


def _no(reason: Reason) -> BindReport:
    return BindReport(bound=False, reason=reason)
