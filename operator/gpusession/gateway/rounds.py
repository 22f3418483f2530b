"""Pings every connection, sooner where nothing is heard, and closes who has fallen silent."""

import asyncio
from datetime import timedelta

from gpusession.api.frames import CloseCode
from gpusession.gateway.connection import Connection
from gpusession.gateway.wheel import TimerWheel

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
        """Whom to visit, and when that was to be: another visit may have been set since."""

    def add(self, connection: Connection, heartbeat_period: timedelta) -> timedelta:
        """Watch over a connection until it ends; gives the longest silence before a ping.

        That is the heartbeat period at most, where one is expected (not 0): a client that only
        answers pings must live.
        """
        connection.heartbeat_period = heartbeat_period
        ping = min(self._ping_period, heartbeat_period or self._ping_period)
        connection.ping_period = ping.total_seconds()
        self._put(connection)
        return ping

    async def change(self, connection: Connection, heartbeat_period: timedelta) -> None:
        """Go by another heartbeat from now on, and have the client told.

        One that is not watched yet is to be added with it.
        """
        if connection.heartbeat_period == heartbeat_period:
            return
        connection.heartbeat_period = heartbeat_period
        if connection.visit_at is not None:
            ping = self.add(connection, heartbeat_period)
            await connection.tell_heartbeat(heartbeat_period, ping)

    async def run(self) -> None:
        """Go round for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._tick)
            for connection, at in self._wheel.advance(loop.time()):
                if connection.visit_at == at:
                    await self._visit(connection, loop.time())

    async def _visit(self, connection: Connection, now: float) -> None:
        if connection.is_over:
            return
        if now >= connection.heard_at + self._limit:
            connection.shut(CloseCode.SILENT, "nothing was heard of you")
            return
        if now >= self._ping_at(connection):
            await connection.ping()
        self._put(connection)

    def _put(self, connection: Connection) -> None:
        at = min(self._ping_at(connection), connection.heard_at + self._limit)
        connection.visit_at = at
        self._wheel.put((connection, at), at)

    def _ping_at(self, connection: Connection) -> float:
        quiet_since = max(connection.heard_at, connection.pinged_at)
        regular = connection.pinged_at + self._ping_period.total_seconds()
        return min(quiet_since + connection.ping_period, regular)
