"""Pings every connection, sooner where nothing is heard, and closes who has fallen silent."""

import asyncio
from datetime import timedelta

from gpusession.api.frames import CloseCode
from gpusession.gateway.connection import Connection
from gpusession.gateway.wheel import TimerWheel
from gpusession.store.clients import Welcome

LONGEST_TICK = 0.1
"""Seconds by which a ping may be late: a tenth of the shortest heartbeat period. Of 20,000
connections that came together it also pings no more at once than came in so long."""


class Rounds:
    """One task and one timer wheel for all connections.

    A client that beats by itself gets a ping each `ping_period` and no more, since pongs would
    only double its beats.
    """

    def __init__(self, *, ping_period: timedelta, silence_limit: timedelta) -> None:
        self._ping_period = ping_period
        self._limit = silence_limit.total_seconds()
        self._tick = min(LONGEST_TICK, ping_period.total_seconds() / 10)
        self._wheel: TimerWheel[tuple[Connection, float]] = TimerWheel(self._tick)

    def period_of(self, facts: Welcome) -> timedelta:
        """Give the longest silence before a ping: a client that only answers them must live.

        Its heartbeat period, and half of what ends its Session where that is less: one beat
        that may be missing leaves no time for a ping.
        """
        if not facts.per:
            return self._ping_period
        return min(self._ping_period, facts.per, facts.hbt / 2)

    def add(self, connection: Connection, period: timedelta) -> None:
        """Watch over a connection until it ends."""
        self._put(connection, period.total_seconds())

    async def run(self) -> None:
        """Go round for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._tick)
            for connection, period in self._wheel.advance(loop.time()):
                await self._visit(connection, period, loop.time())

    async def _visit(self, connection: Connection, period: float, now: float) -> None:
        if connection.is_over:
            return
        if now >= connection.heard_at + self._limit:
            connection.shut(CloseCode.SILENT, "nothing was heard of you")
            return
        if now >= self._ping_at(connection, period):
            await connection.ping()
        self._put(connection, period)

    def _put(self, connection: Connection, period: float) -> None:
        at = min(self._ping_at(connection, period), connection.heard_at + self._limit)
        self._wheel.put((connection, period), at)

    def _ping_at(self, connection: Connection, period: float) -> float:
        quiet_since = max(connection.heard_at, connection.pinged_at)
        regular = connection.pinged_at + self._ping_period.total_seconds()
        return min(quiet_since + period, regular)
