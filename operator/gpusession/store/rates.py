"""Rates over all gateways: a token bucket and a sliding window for each name.

The bucket is one script, the window is the library `limits`. Both count by the clock of
Redis. Whoever is refused has taken nothing; only of those who come at the very moment in
which a window fills, some have taken from the rest.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from gpusession.errors import StoreUnavailable
from gpusession.store import keys
from gpusession.store.client import RedisClient, pool

_CONNECTIONS = 2
"""For the windows: they are asked about connects and new tokens only, never about beats."""


_Ask = Callable[[RateLimitItem, str], Awaitable[bool]]
"""Whether one more fits into a window: `test` only looks, `hit` also counts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What one name may do: a step and depth of its bucket, and so many in any minute."""

    step: timedelta
    depth: timedelta
    per_minute: int


class RateStore:
    """Takes from buckets and windows; `windows` are made by `connected_rates`."""

    def __init__(
        self, client: RedisClient, windows: SlidingWindowCounterRateLimiter, *, timeout: timedelta
    ) -> None:
        self._client = client
        self._windows = windows
        self._timeout = timeout.total_seconds()
        self._permits = asyncio.Semaphore(_CONNECTIONS)  # the pool itself refuses who is too many

    async def take(self, rates: Mapping[str, Rate]) -> timedelta:
        """Take one of each name, or none; returns how long to wait, zero if taken.

        Raises StoreUnavailable.
        """
        # Windows are looked at first, since nothing can be put back; buckets before they are
        # entered, since an empty one is the usual refusal, and fills again within moments.
        return (
            await self._ask_windows(rates, self._windows.test)
            or await self._take_from_buckets(rates)
            or await self._ask_windows(rates, self._windows.hit)
        )

    async def _ask_windows(self, rates: Mapping[str, Rate], ask: _Ask) -> timedelta:
        try:
            async with asyncio.timeout(self._timeout), self._permits:
                return max([await self._wait_for_window(name, rates[name], ask) for name in rates])
        except (StorageError, TimeoutError) as error:
            raise StoreUnavailable("Redis gave no usable answer about a rate") from error

    async def _take_from_buckets(self, rates: Mapping[str, Rate]) -> timedelta:
        names = [keys.bucket(name) for name in rates]
        args = [_milliseconds(part) for rate in rates.values() for part in (rate.step, rate.depth)]
        wait = await self._client.run("take", keys=names, args=args)
        return timedelta(milliseconds=int(wait))

    async def _wait_for_window(self, name: str, rate: Rate, ask: _Ask) -> timedelta:
        window = RateLimitItemPerMinute(rate.per_minute)
        if await ask(window, name):
            return timedelta(0)
        full = await self._windows.get_window_stats(window, name)
        return timedelta(seconds=max(full.reset_time - time.time(), 1))


@asynccontextmanager
async def connected_rates(
    url: str, client: RedisClient, *, redis_timeout: timedelta
) -> AsyncIterator[RateStore]:
    """Give rates whose windows have connections of their own, as the library wants it."""
    seconds = redis_timeout.total_seconds()
    options: dict[str, Any] = {
        "connection_pool": pool(url, timeout=seconds, connections=_CONNECTIONS)
    }
    storage = RedisStorage(
        "async+redis://",  # unused: the pool knows the way
        implementation="redispy",
        key_prefix=keys.WINDOWS,
        wrap_exceptions=True,
        **options,
    )
    try:
        yield RateStore(client, SlidingWindowCounterRateLimiter(storage), timeout=redis_timeout)
    finally:
        await options["connection_pool"].aclose()


def _milliseconds(duration: timedelta) -> str:
    return f"{duration / timedelta(milliseconds=1):.3f}"
