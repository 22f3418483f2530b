"""How long Redis has been watched without a break: what every "silent" rests on.

A record that looks old proves silence only if beats could have been written all the while,
into this very server, and were not lost since. Any doubt begins a new watch, and nobody is
overdue before one whole threshold of it. Times of the server are only ever compared with
its own; of ours only differences are used.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec


class Break(StrEnum):
    """Why a watch began anew."""

    FIRST = "first"
    """A new leader, or a new process: what was before was not watched."""
    GAP = "gap"
    """We, or Redis, were away for longer than `longest_gap`."""
    SERVER = "server"
    """Another process or another history answers at this address."""
    REPLICA = "replica"
    """The server is not the one that takes the writes."""
    REWOUND = "rewound"
    """The server has forgotten our last tick: wiped, or an older copy of itself."""
    CLOCK = "clock"
    """The server's clock went another way than ours."""


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the server about itself, and when we had it by our own clock."""

    run_id: str
    replication_id: str
    is_primary: bool
    remembers: bool
    """Whether the last tick that the server knows is the last one that we wrote."""
    now: datetime
    """The server's clock."""
    gateways: int
    """Living gateways: without any, no client can be heard."""
    sent_at: float
    answered_at: float
    """Seconds of our monotonic clock around the request."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How much a watch may be disturbed, filled from the settings."""

    longest_gap: timedelta = timedelta(seconds=5)
    """Twenty sweeps: less is a busy machine, more hides what happened meanwhile."""

    longest_stall: timedelta = timedelta(seconds=1)
    """As long as a gateway waits for Redis: in a longer one beats are lost."""

    clock_error: timedelta = timedelta(seconds=1)
    """Clocks that are slewed drift by 0.5 ms per second; a step is more than this."""


@dataclass(frozen=True, slots=True)
class Watch:
    """An unbroken watch; all None before the first tick."""

    since: datetime | None = None
    """The server's clock when this watch began; None while nothing can be said."""

    heard_since: datetime | None = None
    """Since when, within the watch, at least one gateway has lived in every tick."""

    steady_from: datetime | None = None
    """From when on silence may prove something again, after Redis or we stood still for a
    while: what was waiting then comes first. None if nothing was."""

    last: Tick | None = None
    broken_by: Break | None = None
    """Why the latest tick began a new watch; None if it went on with the old one."""

    @property
    def now(self) -> datetime | None:
        """The server's clock at the latest tick."""
        return None if self.last is None else self.last.now


def watched(before: Watch, tick: Tick, *, tolerances: Tolerances) -> Watch:
    """Take in a tick: the watch goes on, or a new one begins with it."""
    broken_by = _break(before.last, tick, tolerances)
    since = before.since if broken_by is None else tick.now
    if not tick.is_primary:
        return Watch(last=tick, broken_by=broken_by)
    since = since or tick.now
    steady = before.steady_from if broken_by is None else None
    if broken_by is None and _took(before.last, tick) > tolerances.longest_stall:
        steady = tick.now + tolerances.longest_gap
    heard = None
    if tick.gateways:
        heard = before.heard_since if broken_by is None else None
        heard = heard or tick.now
    return Watch(since=since, heard_since=heard, steady_from=steady, last=tick, broken_by=broken_by)


def is_recent(tick: Tick, now: float, *, tolerances: Tolerances) -> bool:
    """Tell whether a tick still speaks for the server at that moment of our clock.

    While Redis is away the watch looks unbroken until the next tick finds the gap; what was
    not written meanwhile must prove nothing in between.
    """
    return now - tick.sent_at <= tolerances.longest_gap.total_seconds()


def heard_from(watch: Watch, moment: datetime) -> Watch:
    """Let nobody's silence count before that moment of the server's clock."""
    if watch.heard_since is None:
        return watch
    return replace(watch, heard_since=max(watch.heard_since, moment))


def restarted(before: Watch) -> Watch:
    """Begin a new watch with the latest tick: everybody gets a whole threshold again."""
    now = before.now
    if before.since is None or now is None:
        return before
    heard = None if before.heard_since is None else now
    return replace(before, since=now, heard_since=heard)


def _break(last: Tick | None, tick: Tick, tolerances: Tolerances) -> Break | None:
    if last is None:
        return Break.FIRST
    if not tick.is_primary:
        return Break.REPLICA
    if (tick.run_id, tick.replication_id) != (last.run_id, last.replication_id):
        return Break.SERVER
    if not tick.remembers:
        return Break.REWOUND
    if _took(last, tick) > tolerances.longest_gap:
        return Break.GAP
    # The server read its clock somewhere between our sending and its answer.
    passed = (tick.now - last.now).total_seconds()
    error = tolerances.clock_error.total_seconds()
    least, most = tick.sent_at - last.answered_at, tick.answered_at - last.sent_at
    return None if least - error <= passed <= most + error else Break.CLOCK


def _took(last: Tick | None, tick: Tick) -> timedelta:
    """Give the longest time in which nobody may have been served between two ticks."""
    return timedelta(seconds=tick.answered_at - last.sent_at) if last else timedelta()
