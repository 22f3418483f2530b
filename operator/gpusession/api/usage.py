"""What an agent tells of the GPU work of its Sessions: seen, seen to be none, or not seen."""

from enum import StrEnum

import msgspec

from gpusession.api.session import Words


class Busy(StrEnum):
    """Whether a Session's processes worked on a GPU lately."""

    BUSY = "Busy"
    NOT_BUSY = "NotBusy"
    """Somebody could look the whole time, and saw no work."""
    UNKNOWN = "Unknown"
    """Blind, not yet looked for long enough, or work that nobody can be named for."""


class SessionUsage(Words, frozen=True, kw_only=True, omit_defaults=False):
    """One bound Session."""

    session_uid: str = msgspec.field(name="sessionUID")
    busy: Busy
    utilization_percent: int | None = None
    """The most that any engine (SM, memory, encoder, decoder) was used; null when Unknown."""
    sampled_seconds: float = 0.0
    """How much of the window the driver's samples cover."""


class UsageReport(Words, frozen=True, kw_only=True, omit_defaults=False):
    """Answer of GET /v1/usage."""

    boot_id: str = msgspec.field(name="bootID")
    sessions: tuple[SessionUsage, ...] = ()
