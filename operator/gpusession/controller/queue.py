"""The destroy channel: keys that need a look, each at most once, never with two workers.

The contract of client-go's workqueue: a key that is added while it waits is there once; one
that is added while it is worked on comes up again right after. Priorities order what is
ready; within one priority the oldest is first.
"""

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable
from datetime import timedelta
from enum import IntEnum

from gpusession.metrics import QUEUE_DEPTH


class Priority(IntEnum):
    """Who comes first; smaller is sooner."""

    EXPLICIT = 0
    REVOKED = 1
    DISCONNECTED = 2
    HEARTBEAT = 3
    IDLE = 4
    ORPHAN = 5
    RESYNC = 6


class DestroyQueue:
    """A keyed queue with delays and one pause per key that doubles until it is forgotten.

    `jitter` draws from 0 to 1, so that keys which failed together do not return together.
    """

    def __init__(
        self,
        *,
        retry_base: timedelta,
        retry_cap: timedelta,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._retry_base = retry_base
        self._retry_cap = retry_cap
        self._jitter = jitter
        self._order = itertools.count()
        self._ready: list[tuple[Priority, int, str]] = []
        self._waiting: dict[str, Priority] = {}
        self._working: dict[str, Priority | None] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._arrived = asyncio.Semaphore(0)
        self._given_back = asyncio.Event()
        self._open = True

    def add(self, key: str, priority: Priority) -> None:
        """Have a key looked at as soon as its turn comes."""
        self._cancel_timer(key)
        if key in self._working:
            again = self._working[key]
            self._working[key] = priority if again is None else min(again, priority)
            return
        known = self._waiting.get(key)
        if known is not None and known <= priority:
            return
        self._waiting[key] = priority
        heapq.heappush(self._ready, (priority, next(self._order), key))
        self._arrived.release()
        QUEUE_DEPTH.set(len(self._waiting))

    def add_after(self, key: str, priority: Priority, delay: timedelta) -> None:
        """Have a key looked at later; a sooner appointment stands."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        due = loop.time() + delay.total_seconds()
        if timer is not None and timer.when() <= due:
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_at(due, self._ring, key, priority)

    def retry(
        self, key: str, priority: Priority, *, at_least: timedelta | None = None
    ) -> timedelta:
        """Have a key looked at after its growing pause; returns the pause."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        pause = min(self._retry_cap, self._retry_base * float(2 ** min(failures, 16)))
        pause = max(pause * (0.5 + 0.5 * self._jitter()), at_least or timedelta())
        self.add_after(key, priority, pause)
        return pause

    def forget(self, key: str) -> None:
        """Let the next failure of a key start with the shortest pause."""
        self._failures.pop(key, None)

    async def get(self) -> tuple[str, Priority]:
        """Wait for a key; the caller must call `done` with it."""
        while True:
            await self._arrived.acquire()
            if not self._open:
                continue
            priority, _, key = heapq.heappop(self._ready)
            if self._waiting.get(key) is not priority:
                continue  # a better place in the queue was found for it
            del self._waiting[key]
            self._working[key] = None
            QUEUE_DEPTH.set(len(self._waiting))
            return key, priority

    def done(self, key: str) -> None:
        """Give a key back; if it was added meanwhile, it comes up again."""
        again = self._working.pop(key)
        self._given_back.set()
        if again is not None:
            self.add(key, again)

    def shut(self) -> None:
        """Hand out no more keys; what is being worked on goes on."""
        self._open = False

    async def drained(self) -> None:
        """Wait until no key is worked on; call it after `shut`."""
        while self._working:
            self._given_back.clear()
            await self._given_back.wait()

    def close(self) -> None:
        """Cancel all appointments."""
        for key in tuple(self._timers):
            self._cancel_timer(key)

    def _ring(self, key: str, priority: Priority) -> None:
        self._timers.pop(key, None)
        self.add(key, priority)

    def _cancel_timer(self, key: str) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
