"""Pings every connection in its time, and closes those that have fallen silent."""

import asyncio
from datetime import timedelta

from gpusession.api.frames import CloseCode
from gpusession.gateway.connection import Connection
from gpusession.gateway.wheel import TimerWheel


class Rounds:
    """One task and one timer wheel for all connections."""

    def __init__(self, *, ping_period: timedelta, silence_limit: timedelta) -> None:
        self._ping = ping_period.total_seconds()
        self._limit = silence_limit.total_seconds()
        self._tick = min(1.0, self._ping / 10)
        self._wheel: TimerWheel[Connection] = TimerWheel(self._tick)

    def add(self, connection: Connection) -> None:
        """Watch over a connection until it ends."""
        self._wheel.put(connection, connection.pinged_at + self._ping)

    async def run(self) -> None:
        """Go round for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._tick)
            for connection in self._wheel.advance(loop.time()):
                await self._visit(connection, loop.time())

    async def _visit(self, connection: Connection, now: float) -> None:
        if connection.is_over:
            return
        silent_at = connection.heard_at + self._limit
        if now >= silent_at:
            connection.shut(CloseCode.SILENT, "nothing was heard of you")
            return
        if now >= connection.pinged_at + self._ping:
            await connection.ping()
        self._wheel.put(connection, min(connection.pinged_at + self._ping, silent_at))
