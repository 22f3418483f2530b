"""Who may come now: rates over all gateways, and how many connections this one bears.

Who is refused is told when to come again. Nobody who is in is put out.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from gpusession.api.frames import RefusalReason
from gpusession.errors import Limited
from gpusession.metrics import GATEWAY_CONNECTION_LIMIT, GATEWAY_LOOP_LAG
from gpusession.rules.admission import Limits, next_limit
from gpusession.store.rates import Rate, RateStore

WINDOW_SECONDS = 1.0
"""How often the limit moves: soon enough to stop a wave of connects while it runs."""

SAMPLE_SECONDS = 0.1
"""Between two looks at how late the event loop is."""

AT_THE_DOOR = 200
"""Whom a full gateway hears out before it sends them away: a browser's token comes only after
the upgrade. It takes milliseconds each, so this is thousands a second."""

COME_AGAIN = timedelta(seconds=5)
"""After a full house: five windows, in which the limit moves by a quarter."""


class Admission:
    """The doors of a gateway."""

    def __init__(
        self,
        rates: RateStore,
        *,
        per_namespace: Rate,
        per_user: Rate,
        limits: Limits,
        take_latency: Callable[[], timedelta],
    ) -> None:
        self._rates = rates
        self._per_namespace = per_namespace
        self._per_user = per_user
        self._limits = limits
        self._take_latency = take_latency
        self._limit = limits.most
        self._inside = self._at_the_door = 0
        GATEWAY_CONNECTION_LIMIT.set(self._limit)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for one connection; raises Limited where there is none."""
        if self._inside >= self._limit:
            raise self._full()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @contextmanager
    def door(self) -> Iterator[Limited]:
        """Hear out one who finds no place, and give the refusal; raises it where many wait."""
        if self._at_the_door >= AT_THE_DOOR:
            raise self._full()
        self._at_the_door += 1
        try:
            yield self._full()
        finally:
            self._at_the_door -= 1

    async def pass_session(self, namespace: str, user: str | None) -> None:
        """Count one connect of a Session; raises Limited, and StoreUnavailable."""
        await self._take(namespace, f"user/{user}" if user else None)

    async def pass_caller(self, namespace: str, username: str) -> None:
        """Count one new token for a Kubernetes user; raises Limited, and StoreUnavailable."""
        await self._take(namespace, f"caller/{username}")

    async def run(self) -> None:
        """Move the limit, for ever."""
        while True:
            lag = await self._feel_lag()
            GATEWAY_LOOP_LAG.set(lag.total_seconds())
            self._limit = next_limit(
                self._limit,
                in_use=self._inside,
                lag=lag,
                latency=self._take_latency(),
                limits=self._limits,
            )
            GATEWAY_CONNECTION_LIMIT.set(self._limit)

    def _full(self) -> Limited:
        return Limited(
            f"{self._inside} connections are all that this gateway bears now",
            reason=RefusalReason.TOO_MANY_CONNECTIONS,
            after=COME_AGAIN,
        )

    async def _take(self, namespace: str, user: str | None) -> None:
        rates: Mapping[str, Rate] = {f"namespace/{namespace}": self._per_namespace} | (
            {user: self._per_user} if user else {}
        )
        wait = await self._rates.take(rates)
        if wait:
            raise Limited(
                f"too many connects and new tokens of {' and '.join(rates)}",
                reason=RefusalReason.TOO_MANY_REQUESTS,
                after=wait,
            )

    async def _feel_lag(self) -> timedelta:
        loop, worst = asyncio.get_running_loop(), 0.0
        for _ in range(round(WINDOW_SECONDS / SAMPLE_SECONDS)):
            before = loop.time()
            await asyncio.sleep(SAMPLE_SECONDS)
            worst = max(worst, loop.time() - before - SAMPLE_SECONDS)
        return timedelta(seconds=worst)
