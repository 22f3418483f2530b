"""Gathers beats, so that Redis gets them by the hundred: one call for each tick.

Beats of one client that wait together are one beat. While Redis hangs nothing piles up but
one entry per client, and of those no more than a limit; whoever waits is told in time.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from itertools import islice
from math import ceil

import structlog

from gpusession.errors import StoreUnavailable
from gpusession.metrics import GATEWAY_FLUSH_SECONDS, GATEWAY_HEARTBEATS
from gpusession.store.clients import Answer, ClientStore
from gpusession.tokens import Presented

LOOKS = 20
"""In the time that anyone waits: so much of it may be added."""

LANES = 3
"""Calls on their way at once: while Redis works on one, the next is made and the last told."""

log = structlog.get_logger(__name__)


class _Entry:
    """One beat, and who waits for its answer."""

    __slots__ = ("since", "waiting")

    def __init__(self, since: float) -> None:
        self.since = since
        self.waiting: list[asyncio.Future[Answer | None]] = []

    def tell(self, answer: Answer | None) -> None:
        """Answer all who still wait; None says that Redis gave no answer."""
        for future in self.waiting:
            if not future.done():
                future.set_result(answer)
        self.waiting.clear()


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
        patience: timedelta,
    ) -> None:
        self._store = store
        self._gateway = gateway
        self._tick = tick.total_seconds()
        self._batch = batch
        self._most = most
        self._patience = patience.total_seconds()
        self._waiting: dict[Presented, _Entry] = {}
        self._sent: dict[object, tuple[float, list[_Entry]]] = {}
        """The calls that are on their way, with when each began."""
        self._some = asyncio.Event()
        self._slowest = 0.0

    async def beat(self, who: Presented) -> Answer:
        """Return what became of this beat, or of one that waited with it.

        Whoever gives up waiting takes nothing back. Raises StoreUnavailable, in time: one
        timer for all, since a timer for each costs as much as the rest of a beat.
        """
        entry = self._waiting.get(who)
        if entry is None:
            if len(self._waiting) >= self._most:
                raise StoreUnavailable(f"{self._most} beats wait for Redis already")
            entry = self._waiting[who] = _Entry(time.monotonic())
            self._some.set()
        future: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        entry.waiting.append(future)
        answer = await future
        if answer is None:
            raise StoreUnavailable("Redis did not take the beat")
        return answer

    def take_slowest(self) -> timedelta:
        """Give the longest call since this was last asked, one that still runs included."""
        now = time.monotonic()
        oldest = min((began for began, _ in self._sent.values()), default=now)
        slowest, self._slowest = max(self._slowest, now - oldest), 0.0
        return timedelta(seconds=slowest)

    async def run(self) -> None:
        """Bring what waits to Redis, for ever."""
        lanes = asyncio.Semaphore(LANES)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_late())
            while True:
                await self._some.wait()
                await asyncio.sleep(self._tick)
                self._some.clear()
                # What comes from here on waits for the next tick: a call for a few beats
                # costs as much as one for two hundred.
                for _ in range(ceil(len(self._waiting) / self._batch)):
                    await lanes.acquire()
                    tasks.create_task(self._flush(self._take_page(), lanes))

    def _take_page(self) -> dict[Presented, _Entry]:
        page = [*islice(self._waiting, self._batch)]
        return {who: self._waiting.pop(who) for who in page}

    async def _flush(self, page: dict[Presented, _Entry], lanes: asyncio.Semaphore) -> None:
        try:
            await self._bring(page)
        finally:
            lanes.release()

    async def _bring(self, page: dict[Presented, _Entry]) -> None:
        entries = [*page.values()]
        answers: list[Answer] | list[None]
        started = time.monotonic()
        call = object()
        self._sent[call] = started, entries
        try:
            answers = await self._store.beats([*page], self._gateway())
        except StoreUnavailable as error:
            log.warning("beats not taken", beats=len(page), error=str(error))
            answers = [None] * len(page)
        finally:
            del self._sent[call]
        took = time.monotonic() - started
        self._slowest = max(self._slowest, took)
        GATEWAY_FLUSH_SECONDS.observe(took)
        for entry, answer in zip(entries, answers, strict=True):
            entry.tell(answer)
        for result, number in Counter(answers).items():
            GATEWAY_HEARTBEATS.labels(result or "unavailable").inc(number)

    async def _tell_late(self) -> None:
        """Let nobody wait for longer than their patience; their beats stay where they are."""
        while True:
            await asyncio.sleep(self._patience / LOOKS)
            before = time.monotonic() - self._patience
            for entries in (*(sent for _, sent in self._sent.values()), self._waiting.values()):
                _tell_older(entries, before)


def _tell_older(entries: Iterable[_Entry], before: float) -> None:
    for entry in entries:
        if entry.since > before:
            return  # the rest came later still
        entry.tell(None)
