"""Gathers beats, so that Redis gets them by the hundred: one call for each tick.

Beats of one client that wait together are one beat. While Redis hangs nothing piles up but
one entry per client, and of those no more than a limit.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import islice

import structlog

from gpusession.errors import StoreUnavailable
from gpusession.metrics import GATEWAY_FLUSH_SECONDS, GATEWAY_HEARTBEATS
from gpusession.store.clients import Answer, ClientStore
from gpusession.tokens import Presented

log = structlog.get_logger(__name__)


class BeatCoalescer:
    """Takes beats at any rate and gives each its answer."""

    def __init__(
        self,
        store: ClientStore,
        *,
        gateway: Callable[[], str],
        tick: timedelta,
        batch: int,
        most: int,
    ) -> None:
        self._store = store
        self._gateway = gateway
        self._tick = tick.total_seconds()
        self._batch = batch
        self._most = most
        self._waiting: dict[Presented, asyncio.Future[Answer | None]] = {}
        self._some = asyncio.Event()
        self._flushing_since: float | None = None
        self._slowest = 0.0

    async def beat(self, who: Presented) -> Answer:
        """Return what became of this beat, or of one that waited with it.

        Whoever gives up waiting takes nothing back. Raises StoreUnavailable.
        """
        answer = await asyncio.shield(self._put(who))
        if answer is None:
            raise StoreUnavailable("Redis did not take the beat")
        return answer

    def take_slowest(self) -> timedelta:
        """Give the longest call since this was last asked, one that still runs included."""
        now = time.monotonic()
        running = 0.0 if self._flushing_since is None else now - self._flushing_since
        slowest, self._slowest = max(self._slowest, running), 0.0
        return timedelta(seconds=slowest)

    async def run(self) -> None:
        """Bring what waits to Redis, for ever."""
        while True:
            await self._some.wait()
            await asyncio.sleep(self._tick)
            self._some.clear()
            while self._waiting:
                await self._flush()

    def _put(self, who: Presented) -> asyncio.Future[Answer | None]:
        waiting = self._waiting.get(who)
        if waiting is None:
            if len(self._waiting) >= self._most:
                raise StoreUnavailable(f"{self._most} beats wait for Redis already")
            waiting = self._waiting[who] = asyncio.get_running_loop().create_future()
            self._some.set()
        return waiting

    async def _flush(self) -> None:
        batch = {who: self._waiting.pop(who) for who in [*islice(self._waiting, self._batch)]}
        answers: list[Answer | None]
        self._flushing_since = started = time.monotonic()
        try:
            answers = [*await self._store.beats([*batch], self._gateway())]
        except StoreUnavailable as error:
            log.warning("beats not taken", beats=len(batch), error=str(error))
            answers = [None] * len(batch)
        finally:
            self._flushing_since = None
        took = time.monotonic() - started
        self._slowest = max(self._slowest, took)
        GATEWAY_FLUSH_SECONDS.observe(took)
        for waiting, answer in zip(batch.values(), answers, strict=True):
            GATEWAY_HEARTBEATS.labels(answer or "unavailable").inc()
            waiting.set_result(answer)
