"""The answers of `agent/nvml.py`: what was seen, or Blind."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum, auto


class BlindReason(StrEnum):
    """Why nobody could look, cut by what a human or the agent does about it."""

    NOT_STARTED = auto()
    """Not started, or already closed."""
    NVML_TIMEOUT = auto()
    """No answer in time, or an earlier call has not returned yet."""
    CUT_OFF = auto()
    """Whoever asked could wait no longer; NVML may be slow, or well."""
    NVML_ERROR = auto()
    """Any error without a name here."""
    NO_PERMISSION = auto()
    GPU_NOT_FOUND = auto()
    """The driver knows no such GPU, or none was named."""
    GPU_IS_LOST = auto()
    """Fell off the bus: the node needs a human."""
    RESET_REQUIRED = auto()
    """The GPU answers no more until it is reset: the node needs a human."""
    NOT_SUPPORTED = auto()
    """This GPU or driver cannot say what is needed, the list of compute processes above all."""
    LISTS_UNSTABLE = auto()
    """Processes came faster than their list could be read."""
    UNINITIALIZED = auto()
    DRIVER_NOT_LOADED = auto()
    LIBRARY_NOT_FOUND = auto()
    DRIVER_MISMATCH = auto()
    """The driver was upgraded under this process, which must exit to load the new library."""


@dataclass(frozen=True, slots=True)
class Blind:
    """The answer of an observer that could not look: it proves nothing."""

    reason: BlindReason
    detail: str


class Use(StrEnum):
    """What a process does with a GPU: each use has its own list in NVML."""

    COMPUTE = auto()
    GRAPHICS = auto()
    MPS = auto()


@dataclass(frozen=True, slots=True)
class Device:
    """A physical GPU of this node."""

    uuid: str
    index: int
    name: str
    memory_total_bytes: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds something on a GPU; without a size where NVML cannot tell it."""

    pid: int
    memory_bytes: int | None
    gpu_uuid: str
    """Of the MIG device where there is one, else of the GPU."""
    kinds: frozenset[Use]


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What is held on one GPU."""

    uuid: str
    used_bytes: int
    holders: tuple[Holder, ...]
    skipped: frozenset[Use]
    """Lists that this GPU or driver does not keep; never that of compute processes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is held on each GPU asked for, read one GPU after the other."""

    gpus: tuple[GpuUse, ...]

    @property
    def holders(self) -> tuple[Holder, ...]:
        """All processes on all of these GPUs."""
        return tuple(holder for gpu in self.gpus for holder in gpu.holders)


@dataclass(frozen=True, slots=True)
class GpuActivity:
    """How much one GPU, or MIG device, works; None where the driver cannot tell."""

    uuid: str
    device_percent: int | None
    """Of the driver's last sample period only: a sixth of a second to a second."""
    processes: Mapping[int, int] | None
    """The most that each pid used any engine since the asked moment; idle pids are left out."""
