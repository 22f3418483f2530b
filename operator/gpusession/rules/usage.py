"""Whether a Session works on its GPUs: from what each look showed to Busy, NotBusy or Unknown.

Pure: `agent/usage.py` looks. No data is never NotBusy: a look that could not tell, a gap
between two looks, and work that nobody can be named for all leave the answer Unknown.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from gpusession.api.usage import Busy


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageLimits:
    """When work counts, and how well somebody must have looked to say that there was none."""

    busy_percent: int = 1
    """Least utilisation that counts as work; 1 is the least that the driver can tell."""

    window: timedelta = timedelta(seconds=60)
    """What an answer is about: as long as the controller waits between two questions."""

    longest_span: timedelta = timedelta(seconds=10)
    """Longest time that one look may answer for: the driver keeps 72 samples of 1/6 s, 12 s."""

    longest_silence: timedelta = timedelta(seconds=15)
    """How old the last look may be: three periods, else the answer is about the past."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWork:
    """What one look showed of one GPU, from the side of one Session."""

    device_percent: int | None
    """Utilisation of the whole GPU a moment ago; None where it cannot be told."""

    own_percent: int | None
    """The most of the Session's own processes since the last look; None if not kept by process."""

    others_percent: int = 0
    """The most of processes that are surely somebody else's."""

    unclaimed_percent: int = 0
    """The most of processes that nobody can be named for: gone, or their pid was used again."""

    is_alone: bool = False
    """Whether the Session is listed on this GPU, and nobody else is."""

    is_by_server: bool = False
    """Whether it works through an MPS server, whose samples may carry the server's name."""

    @property
    def is_told_by_process(self) -> bool:
        """Whether the silence of the Session's own samples means anything."""
        return self.own_percent is not None and not self.is_by_server


@dataclass(frozen=True, slots=True)
class Look:
    """What one look showed of a Session on all its GPUs."""

    since: timedelta
    """When the look before was, as `at` on a clock that never steps."""
    at: timedelta
    percent: int | None
    """The most work of the Session; None where the look could not tell."""
    sampled: timedelta
    """How much of the time since the look before the driver's samples cover."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The answer about one Session."""

    busy: Busy
    percent: int | None
    sampled: timedelta


def work_on(gpu: GpuWork, *, busy_percent: int) -> int | None:
    """Tell how much the Session worked on this GPU, or None where that cannot be told.

    Its own samples say it where they show work. Their silence counts only where nothing
    contradicts it: no work without a name, and no busy GPU that nobody's samples explain. A
    GPU that does not work at all clears everybody on it; one that does names the Session
    only where nobody else is there.
    """
    own, device = gpu.own_percent, gpu.device_percent
    if own is not None and own >= busy_percent:
        return own
    if own is None or not gpu.is_told_by_process:
        is_told = device is not None and (device < busy_percent or gpu.is_alone)
        return device if is_told else None
    if gpu.unclaimed_percent >= busy_percent:
        return None
    if device is not None and device >= busy_percent > gpu.others_percent:
        return device if gpu.is_alone else None
    return own


def work_on_all(percents: Iterable[int | None], *, busy_percent: int) -> int | None:
    """Join what was seen on each GPU: work on one is enough, its absence must be seen on all."""
    seen = tuple(percents)
    most = max((percent for percent in seen if percent is not None), default=None)
    if most is not None and (most >= busy_percent or None not in seen):
        return most
    return None


def judge(looks: Sequence[Look], *, now: timedelta, limits: UsageLimits) -> Usage:
    """Say whether the Session was busy in the window that ends with the last look.

    The window belongs to nobody: whoever asks gets the same answer as everybody else.
    """
    if not looks or now - looks[-1].at > limits.longest_silence:
        return Usage(Busy.UNKNOWN, None, timedelta())
    begin = looks[-1].at - limits.window
    recent = [look for look in looks if look.at > begin]
    seen = [look for look in recent if look.percent is not None]
    most = max((look.percent for look in seen if look.percent is not None), default=None)
    sampled = sum((min(look.sampled, look.at - begin) for look in seen), timedelta())
    if most is not None and most >= limits.busy_percent:
        return Usage(Busy.BUSY, most, sampled)
    if len(seen) == len(recent) and _is_whole(recent, begin=begin, limits=limits):
        return Usage(Busy.NOT_BUSY, most, sampled)
    return Usage(Busy.UNKNOWN, None, sampled)


def _is_whole(looks: Sequence[Look], *, begin: timedelta, limits: UsageLimits) -> bool:
    """Tell whether the looks follow one another without a gap, from before `begin` on."""
    if looks[0].since > begin or any(look.at - look.since > limits.longest_span for look in looks):
        return False
    return all(later.since <= earlier.at for earlier, later in pairwise(looks))
