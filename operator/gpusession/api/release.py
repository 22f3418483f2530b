"""What controller and agent say to each other, as JSON over TLS.

The controller names a Session and its Pod; it never names a process, a path or a cgroup:
the agent derives those itself. Every call may be repeated and then answers the same.
"""

from enum import StrEnum

import msgspec

from gpusession.api.session import Reason, Stage, StateKeys, Words

TOKEN_AUDIENCE = "gpusession-agent"  # noqa: S105 - a name, not a secret
"""The audience of the ServiceAccount token that the controller shows to an agent."""


class Verdict(StrEnum):
    """How a release ended. Only the completing ones let a finalizer go."""

    FREED = "Freed"
    NOTHING_HELD = "NothingHeld"
    REFERENCE_DROPPED = "ReferenceDropped"
    NODE_GONE = "NodeGone"
    NOT_BOUND = "NotBound"
    OVERRIDDEN = "Overridden"
    HELD = "Held"
    UNKNOWN = "Unknown"


COMPLETING = frozenset(Verdict) - {Verdict.HELD, Verdict.UNKNOWN}
"""Verdicts that rest on evidence; HELD and UNKNOWN are retried."""


class Mode(StrEnum):
    """How far the ladder may go."""

    END = "End"
    """Signal what is left of the Pod, then verify."""

    VERIFY = "Verify"
    """Only look: someone else's deletion is running, or the Pod withdrew its consent."""

    IF_BOUND = "IfBound"
    """As END where the ledger knows a bind of this very Session; NOT_BOUND otherwise.

    For a Session that never became Active: its bind may have been refused, and then the
    Pod is somebody else's and must live on.
    """


class BindRequest(Words, frozen=True, kw_only=True):
    """Claim a Pod on the agent's node for one Session."""

    session_uid: str = msgspec.field(name="sessionUID")
    session_namespace: str
    session_name: str
    pod_name: str
    pod_uid: str = msgspec.field(name="podUID")
    leader_epoch: int = 0


class BindReport(Words, frozen=True, kw_only=True, omit_defaults=False):
    """The agent's answer: bound, with what is known of the Pod, or refused with a reason.

    `gpu_uuids` are the devices that kubelet has given to the Pod, and those on which NVML
    showed it, now or earlier while bound. Only `seen_holding` says that it held anything.
    """

    bound: bool
    reason: Reason = Reason.BOUND
    message: str = ""
    gpu_uuids: tuple[str, ...] = msgspec.field(default=(), name="gpuUUIDs")
    seen_holding: bool = False
    memory_bytes: int = 0
    boot_id: str = msgspec.field(default="", name="bootID")


class ReleaseOrder(Words, frozen=True, kw_only=True):
    """Release one Session's hold on the agent's node, then clear its Redis state."""

    session_uid: str = msgspec.field(name="sessionUID")
    session_namespace: str
    session_name: str
    pod_name: str
    pod_uid: str = msgspec.field(name="podUID")
    gpu_uuids: tuple[str, ...] = msgspec.field(default=(), name="gpuUUIDs")
    seen_holding: bool = False
    mode: Mode = Mode.END
    termination_grace_period_seconds: int = 0
    state: StateKeys | None = None
    leader_epoch: int = 0


class ReleaseRequest(Words, frozen=True, kw_only=True):
    """A batch for one node; the answers come in the same order."""

    releases: tuple[ReleaseOrder, ...]


class StateReport(Words, frozen=True, kw_only=True, omit_defaults=False):
    """What became of the Session's Redis state."""

    cleared: bool
    reason: Reason
    message: str = ""
    keys_cleared: int = 0


class ReleaseReport(Words, frozen=True, kw_only=True, omit_defaults=False):
    """The verdict on one Session and the evidence behind it.

    Bytes are what NVML attributed to the Pod's processes: before at the first look of the
    release, after at the last. `reason` says why when the verdict does not complete.
    """

    session_uid: str = msgspec.field(name="sessionUID")
    verdict: Verdict
    reason: Reason
    message: str = ""
    gpu_uuids: tuple[str, ...] = msgspec.field(default=(), name="gpuUUIDs")
    seen_holding: bool = False
    memory_bytes_before: int = 0
    memory_bytes_after: int = 0
    processes_ended: int = 0
    attempts: int = 1
    stages: tuple[Stage, ...] = ()
    state: StateReport


class ReleaseResponse(Words, frozen=True, kw_only=True, omit_defaults=False):
    """One report per order, in the order of the request."""

    reports: tuple[ReleaseReport, ...]


class Problem(Words, frozen=True, kw_only=True, omit_defaults=False):
    """The body of every 4xx and 5xx: a reason to branch on and a sentence to read."""

    reason: str
    message: str
    leader_epoch: int | None = None
    """With StaleLeader: the epoch of the latest leader that gave orders here."""
