"""Where a client's Session stands: its connection, its announced end, its last word.

Written by the keeper, read by whoever waits for something; nothing here does I/O.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from gpusession.api import frames
from gpusession.client.connection import Connection
from gpusession.client.ending import ABNORMAL, Ending
from gpusession.client.errors import GatewayUnreachable, GaveUp, Left

log = logging.getLogger("gpusession.client")


@dataclass(frozen=True, slots=True)
class PendingDestroy:
    """The Session ends at `deadline`, unless it is cancellable and somebody shows up."""

    reason: str
    deadline: datetime
    cancellable: bool


@dataclass(frozen=True, slots=True)
class Restored:
    """The end was cancelled."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The client has stopped for good; always the last event."""

    cause: GaveUp


Event = PendingDestroy | Restored | Ended


class Standing:
    """What is known right now, and who is to be told of changes."""

    def __init__(self) -> None:
        self.facts: frames.Welcome | None = None
        self.connection: Connection | None = None
        self.pending: PendingDestroy | None = None
        self.over: GaveUp | None = None
        self.last_ending = Ending(ABNORMAL, "none has ended yet")
        self.unproven = False
        """A new connection has not yet shown whether the announced end still holds."""
        self._changed = asyncio.Event()
        self._listeners: list[asyncio.Queue[Event]] = []

    def enter(self, connection: Connection) -> None:
        """Let callers use this connection."""
        self.facts = connection.welcome
        self.unproven = self.pending is not None
        self.connection = connection
        self._notify()

    def drop(self, connection: Connection) -> None:
        """Let callers wait for another connection than this one."""
        if self.connection is connection:
            self.connection = None

    def finish(self, error: GaveUp) -> None:
        """Say the last word; the first caller's counts."""
        if self.over is not None:
            return
        self.over = error
        if not isinstance(error, Left):
            log.warning("the client stops: %s", error)
        self._announce(Ended(error))
        self._notify()

    async def finished(self) -> GaveUp:
        """Wait for the last word."""
        while self.over is None:
            await self._changed.wait()
        return self.over

    async def open_connection(self, give_up_at: float) -> Connection:
        """Wait for a connection, until a moment of the loop's clock.

        Raises GatewayUnreachable then, or GaveUp where there will be none.
        """
        try:
            async with asyncio.timeout_at(give_up_at):
                while True:
                    if self.over is not None:
                        raise self.over
                    if self.connection is not None:
                        return self.connection
                    await self._changed.wait()
        except TimeoutError as error:
            why = f"no gateway in time; how the last attempt ended: {self.last_ending.reason}"
            raise GatewayUnreachable(why) from error

    def heard(self, frame: frames.GatewayFrame) -> None:
        """Take in what a gateway says."""
        match frame:
            case frames.PendingDestroy():
                self.unproven = False
                deadline = datetime.fromisoformat(frame.deadline)
                self.pending = PendingDestroy(frame.reason, deadline, frame.cancellable)
                self._announce(self.pending)
            case frames.Restored():
                self._restored()
            case frames.Ack() if self.unproven:
                self._restored()  # a gateway announces an end before it acknowledges a beat
            case frames.Welcome():
                self.facts = frame
            case frames.Error():
                log.warning("the gateway says %s: %s", frame.reason, frame.message)
            case _:
                pass

    async def events(self) -> AsyncIterator[Event]:
        """Tell of all changes, beginning with how it stands; the last one is Ended."""
        queue: asyncio.Queue[Event] = asyncio.Queue()
        if self.pending is not None:
            queue.put_nowait(self.pending)
        if self.over is not None:
            queue.put_nowait(Ended(self.over))
        self._listeners.append(queue)
        try:
            while not isinstance(event := await queue.get(), Ended):
                yield event
            yield event
        finally:
            self._listeners.remove(queue)

    def _restored(self) -> None:
        self.unproven = False
        if self.pending is not None:
            self.pending = None
            self._announce(Restored())

    def _announce(self, event: Event) -> None:
        for listener in self._listeners:
            listener.put_nowait(event)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
