"""The parts of Kubernetes' own objects that the operator reads, and nothing more."""

import msgspec

from gpusession.api.session import USE_LABEL, Words

OUT_OF_SERVICE_TAINT = "node.kubernetes.io/out-of-service"
"""Set by a human or a cloud controller: the node is down and its pods are not running."""


SCALABLE = {
    ("apps/v1", "Deployment"): "deployments",
    ("apps/v1", "ReplicaSet"): "replicasets",
    ("apps/v1", "StatefulSet"): "statefulsets",
    ("v1", "ReplicationController"): "replicationcontrollers",
}
"""Owners of Pods that have a scale, and how their collections are called."""


class OwnerReference(Words, frozen=True, kw_only=True):
    """metav1.OwnerReference; at most one owner of an object is its controller."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False

    @property
    def is_scalable(self) -> bool:
        """Whether it is of a kind whose scale we may write."""
        return (self.api_version, self.kind) in SCALABLE


class ObjectMeta(Words, frozen=True, kw_only=True):
    """metav1.ObjectMeta, as far as it is read."""

    name: str
    uid: str
    namespace: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def controller(self) -> OwnerReference | None:
        """The one owner that makes another object when this one is gone."""
        return next((owner for owner in self.owner_references if owner.controller), None)


class ContainerPort(Words, frozen=True, kw_only=True):
    """One declared port of a container."""

    container_port: int
    name: str = ""


class Container(Words, frozen=True, kw_only=True):
    """A container, for its ports."""

    ports: tuple[ContainerPort, ...] = ()


class PodSpec(Words, frozen=True, kw_only=True):
    """Where a Pod runs, whether kubelet restarts its containers, which ports it declares."""

    node_name: str | None = None
    restart_policy: str = "Always"
    containers: tuple[Container, ...] = ()


class PodStatus(Words, frozen=True, kw_only=True):
    """How a Pod is."""

    phase: str = "Unknown"
    pod_ip: str | None = msgspec.field(default=None, name="podIP")


class Pod(Words, frozen=True, kw_only=True):
    """core/v1 Pod."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def use(self) -> str | None:
        """What the Pod consents to, or None where it never opted in."""
        return self.metadata.labels.get(USE_LABEL)


class Taint(Words, frozen=True, kw_only=True):
    """A node's taint."""

    key: str


class NodeSpec(Words, frozen=True, kw_only=True):
    """A node's taints."""

    taints: tuple[Taint, ...] = ()


class Node(Words, frozen=True, kw_only=True):
    """core/v1 Node."""

    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()


class Ordinals(Words, frozen=True, kw_only=True):
    """Where a StatefulSet begins to count."""

    start: int = 0


class WorkloadSpec(Words, frozen=True, kw_only=True):
    """How many Pods are wanted."""

    replicas: int = 1
    ordinals: Ordinals = Ordinals()


class Workload(Words, frozen=True, kw_only=True):
    """A Deployment, ReplicaSet, StatefulSet or ReplicationController."""

    metadata: ObjectMeta
    spec: WorkloadSpec = WorkloadSpec()


class ScaleStatus(Words, frozen=True, kw_only=True):
    """Which Pods are counted, as a label selector in words."""

    selector: str = ""


class Scale(Words, frozen=True, kw_only=True):
    """autoscaling/v1 Scale."""

    status: ScaleStatus = ScaleStatus()


class Namespace(Words, frozen=True, kw_only=True):
    """core/v1 Namespace; its labels may ask for observe mode."""

    metadata: ObjectMeta


class LeaseSpec(Words, frozen=True, kw_only=True):
    """Who holds a Lease, and how often it has changed hands."""

    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int = 0


class LeaseMeta(Words, frozen=True, kw_only=True):
    """A Lease's name and version; a write of another version is refused."""

    name: str
    uid: str | None = None
    resource_version: str | None = None


class Lease(Words, frozen=True, kw_only=True):
    """coordination.k8s.io/v1 Lease."""

    metadata: LeaseMeta
    spec: LeaseSpec = LeaseSpec()
