"""How many may come: the adaptive limit of open connections, and rates by token bucket.

The limit follows what the gateway feels, its own event loop and Redis: additive increase,
multiplicative decrease. Nobody who is in is put out; only newcomers wait.
"""

import math
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Between what the limit moves, and what counts as too slow."""

    least: int
    most: int
    lag: timedelta
    """An event loop that is this late serves nobody well."""
    latency: timedelta
    """A Redis this slow has more than it can do, or does not answer."""
    growth: float = 0.05
    """Part of the limit added in a window: from the least of 200 to 20,000 in 95 windows."""
    cut: float = 0.9
    """What a bad window leaves of it; half is gone after seven."""


def next_limit(
    limit: int, *, in_use: int, lag: timedelta, latency: timedelta, limits: Limits
) -> int:
    """Give the limit after one more window in which this was felt.

    A limit far above its use would cut nothing, so a cut begins at the use; and one that
    is not half used has not been tried, so it does not grow.
    """
    if lag > limits.lag or latency > limits.latency:
        wanted = math.floor(min(limit, max(in_use, 1)) * limits.cut)
    elif in_use * 2 >= limit:
        wanted = limit + max(1, math.floor(limit * limits.growth))
    else:
        wanted = limit
    return min(max(wanted, limits.least), limits.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A token bucket: so many at once, and so many a second for ever."""

    per_second: float
    burst: int

    @property
    def step(self) -> timedelta:
        """The time in which one token falls into it."""
        return timedelta(seconds=1 / self.per_second)

    @property
    def depth(self) -> timedelta:
        """The time in which it fills from empty: how far a burst may run ahead."""
        return self.step * self.burst


def seconds_to_wait(wait: timedelta) -> int:
    """Give what Retry-After says: whole seconds, rounded up, at least one."""
    return max(1, math.ceil(wait.total_seconds()))
