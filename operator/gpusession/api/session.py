"""The Session resource as Python sees it: spec, status, phases, conditions, reasons.

`crds/session.yaml` is the contract; a test proves that both agree. Field names are the
camelCase of the Python names. Only fields that some part of the operator reads or writes
are decoded; unknown ones are skipped, so a newer CRD does not break an older operator.
"""

from enum import StrEnum

import msgspec

GROUP = "gpusession.dev"
VERSION = "v1alpha1"
PLURAL = "sessions"
KIND = "Session"

FINALIZER = f"{GROUP}/release"
"""Held from before the bind until the evidence of the release is in the status."""

USE_LABEL = f"{GROUP}/use"
"""The Pod's own consent: `exclusive` (processes may be ended) or `shared`."""

BIND_INTENT_ANNOTATION = f"{GROUP}/bind-intent"
"""`<node>/<pod uid>`, written with the finalizer and before the agent is called.

A Session without it was never bound, which is what verdict NotBound rests on.
"""

OVERRIDE_ANNOTATION = f"{GROUP}/override-release-by"
"""A human gives up on the evidence. Admission holds the value to the user's own name."""

REVOKE_ANNOTATION = f"{GROUP}/revoke"
"""Whatever its value: the Session's tokens are void, and the Session ends."""

EXPIRY_OVERRIDE_ANNOTATION = f"{GROUP}/override-expiry-by"
"""A human says that the silence is real: the brake lets this Session go. Signed as above."""

MODE_LABEL = f"{GROUP}/mode"
"""On a Namespace: `observe` means that expiry only says what it would have ended."""

OBSERVE = "observe"


class Phase(StrEnum):
    """Where a Session stands; it moves only forward, save for a cancelled PendingDestroy."""

    PENDING = "Pending"
    ACTIVE = "Active"
    PENDING_DESTROY = "PendingDestroy"
    DESTROYED = "Destroyed"


class RecordState(StrEnum):
    """How far the end of a Session has come in its record, as clients are told."""

    ACTIVE = "active"
    PENDING = "pending"
    RELEASING = "releasing"
    GONE = "gone"


class Use(StrEnum):
    """What a Pod consents to, by its label `gpusession.dev/use`."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"


class OnRelease(StrEnum):
    """What becomes of the Pod when its Session ends."""

    DELETE_POD = "DeletePod"
    SCALE_OWNER = "ScaleOwner"
    NONE = "None"


class ConditionType(StrEnum):
    """Every condition type that the operator writes."""

    READY = "Ready"
    FINISHED = "Finished"
    PENDING_DESTROY = "PendingDestroy"
    GPU_RELEASED = "GPUReleased"
    STATE_CLEARED = "StateCleared"
    HEARTBEAT_HEALTHY = "HeartbeatHealthy"
    OWNER_WILL_RECREATE = "OwnerWillRecreate"
    EXPIRY_PAUSED = "ExpiryPaused"


class Reason(StrEnum):
    """Every reason in `status.reason`, a condition, an Event or a metric label."""

    # Why a Session still waits (Pending).
    POD_NOT_FOUND = "PodNotFound"
    POD_UNSCHEDULED = "PodUnscheduled"
    POD_NOT_RUNNING = "PodNotRunning"
    POD_NOT_MANAGED = "PodNotManaged"
    POD_IN_USE = "PodInUse"
    SHARED_NOT_SUPPORTED = "SharedNotSupported"
    DEVICE_NOT_OBSERVABLE = "DeviceNotObservable"
    AGENT_UNREACHABLE = "AgentUnreachable"  # also while PendingDestroy waits
    AGENT_REFUSED = "AgentRefused"

    # Active.
    BOUND = "Bound"

    # Why a Session ends (PendingDestroy, Destroyed).
    DELETED = "Deleted"
    EXPLICIT_CLOSE = "ExplicitClose"
    REVOKED = "Revoked"
    LIFETIME_EXCEEDED = "LifetimeExceeded"
    DISCONNECTED = "Disconnected"
    HEARTBEAT_LOST = "HeartbeatLost"
    IDLE = "Idle"
    POD_GONE = "PodGone"
    POD_TERMINATED = "PodTerminated"
    POD_REPLACED = "PodReplaced"
    NODE_GONE = "NodeGone"

    # GPUReleased: True with a completing verdict, False with what is missing.
    FREED = "Freed"
    NOTHING_HELD = "NothingHeld"
    REFERENCE_DROPPED = "ReferenceDropped"
    NOT_BOUND = "NotBound"
    OVERRIDDEN = "Overridden"
    STILL_HELD = "StillHeld"
    NOT_OBSERVABLE = "NotObservable"
    RELEASING = "Releasing"
    DESTROY_GRACE = "DestroyGrace"  # a returning client may still cancel the end

    # StateCleared.
    CLEARED = "Cleared"
    NOTHING_TO_CLEAR = "NothingToClear"
    REDIS_UNAVAILABLE = "RedisUnavailable"
    KEY_REFUSED = "KeyRefused"
    WAITING_FOR_RELEASE = "WaitingForRelease"

    # OwnerWillRecreate: what makes the Pod again, and what was done about it.
    OWNED_BY_REPLICA_SET = "OwnedByReplicaSet"
    OWNED_BY_STATEFUL_SET = "OwnedByStatefulSet"
    OWNED_BY_REPLICATION_CONTROLLER = "OwnedByReplicationController"
    OWNED_BY_DAEMON_SET = "OwnedByDaemonSet"
    OWNED_BY_JOB = "OwnedByJob"
    OWNED_BY_OTHER = "OwnedByOther"
    OWNER_SCALED = "OwnerScaled"
    OWNER_GONE = "OwnerGone"
    OWNER_NOT_SCALABLE = "OwnerNotScalable"
    OWNER_HAS_OTHER_PODS = "OwnerHasOtherPods"
    OWNER_NOT_SCALED = "OwnerNotScaled"
    OWNER_SCALED_UP = "OwnerScaledUp"
    OWNER_SCALE_REFUSED = "OwnerScaleRefused"
    OWNER_HAS_OWNER = "OwnerHasOwner"
    OWNER_NOT_OBSERVABLE = "OwnerNotObservable"

    # ExpiryPaused, HeartbeatHealthy, Events.
    MASS_SILENCE = "MassSilence"
    CLIENT_RETURNED = "ClientReturned"
    WOULD_END = "WouldEnd"


class ConditionStatus(StrEnum):
    """metav1.ConditionStatus."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Words(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A record that crosses a boundary as camelCase JSON; defaults are left out."""


class Condition(Words, frozen=True, kw_only=True, omit_defaults=False):
    """metav1.Condition; `lastTransitionTime` moves only when `status` does."""

    type: str
    status: ConditionStatus
    reason: str
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int = 0


class PodRef(Words, frozen=True, kw_only=True):
    """The Pod in the Session's namespace whose processes hold the GPU."""

    name: str
    on_release: OnRelease = OnRelease.DELETE_POD


class Heartbeat(Words, frozen=True, kw_only=True):
    """How often a client must be heard, and how many misses end the Session."""

    period_seconds: int = 30
    failure_threshold: int = 3
    initial_delay_seconds: int = 60


class Idle(Words, frozen=True, kw_only=True):
    """Sliding expiry by activity; a heartbeat is not activity."""

    timeout_seconds: int = 1800
    signals: tuple[str, ...] = ("Client", "GPU")


class HttpPost(Words, frozen=True, kw_only=True):
    """One request to a declared containerPort of the Pod's own IP."""

    port: int
    path: str = "/"
    body: str = ""
    step: str = "flush"


class Hook(Words, frozen=True, kw_only=True):
    """How to ask the workload itself to let go before anyone signals it."""

    preset: str | None = None
    http_post: tuple[HttpPost, ...] = ()


class Release(Words, frozen=True, kw_only=True):
    """Settings of the release besides its time limits."""

    hook: Hook | None = None


class StateKeys(Words, frozen=True, kw_only=True):
    """Redis keys that belong to the Session; all start with `<namespace>:<name>`."""

    keys: tuple[str, ...] = ()
    index_keys: tuple[str, ...] = ()
    key_prefixes: tuple[str, ...] = ()
    on_release: str = "Delete"
    on_unavailable: str = "Block"
    timeout_seconds: int = 300


class SessionSpec(Words, frozen=True, kw_only=True):
    """What the user asks for. Defaults are those of the CRD."""

    pod_refs: tuple[PodRef, ...]
    user: str | None = None
    heartbeat: Heartbeat | None = None
    idle: Idle | None = None
    max_lifetime_seconds: int = 43200
    disconnect_grace_milliseconds: int = 90000
    destroy_grace_seconds: int = 0
    termination_grace_period_seconds: int = 0
    release: Release | None = None
    state: StateKeys | None = None
    priority: int = 0
    desired_phase: Phase = Phase.ACTIVE
    ttl_seconds_after_destroyed: int | None = None


class Stage(Words, frozen=True, kw_only=True, omit_defaults=False):
    """One rung of the release ladder: what it took, and what came of it."""

    name: str
    milliseconds: float
    result: str


class ReleaseStatus(Words, frozen=True, kw_only=True, omit_defaults=False):
    """The evidence of the end, as NVML and Redis gave it."""

    verdict: str
    memory_bytes_before: int = 0
    memory_bytes_after: int = 0
    keys_cleared: int = 0
    attempts: int = 0
    stages: tuple[Stage, ...] = ()


class SessionStatus(Words, frozen=True, kw_only=True):
    """What the controller alone writes. It never holds a token or a heartbeat."""

    phase: Phase | None = None
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0
    reason: str = ""
    node_name: str | None = None
    node_uid: str | None = msgspec.field(default=None, name="nodeUID")
    pod_uid: str | None = msgspec.field(default=None, name="podUID")
    gpu_uuids: tuple[str, ...] = msgspec.field(default=(), name="gpuUUIDs")
    seen_holding: bool = False
    active_since: str | None = None
    pending_destroy_since: str | None = None
    destroy_after: str | None = None
    leader_epoch: int = 0
    release: ReleaseStatus | None = None


class Metadata(Words, frozen=True, kw_only=True):
    """The part of metav1.ObjectMeta that the operator reads."""

    name: str
    namespace: str
    uid: str
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = ()
    annotations: dict[str, str] = {}

    @property
    def bind_intent(self) -> str | None:
        """The annotation that was written before an agent was first called."""
        return self.annotations.get(BIND_INTENT_ANNOTATION)

    @property
    def override_by(self) -> str | None:
        """The human who gave up on the evidence, if one did."""
        return self.annotations.get(OVERRIDE_ANNOTATION) or None

    @property
    def expiry_override_by(self) -> str | None:
        """The human who says that a silence is real, if one did."""
        return self.annotations.get(EXPIRY_OVERRIDE_ANNOTATION) or None

    @property
    def is_revoked(self) -> bool:
        """Whether somebody has revoked the Session."""
        return REVOKE_ANNOTATION in self.annotations


class Session(Words, frozen=True, kw_only=True):
    """One `sessions.gpusession.dev/v1alpha1` object."""

    metadata: Metadata
    spec: SessionSpec
    status: SessionStatus = SessionStatus()
