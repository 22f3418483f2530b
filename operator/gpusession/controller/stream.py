"""Follows the event stream: what gateways tell makes a key ready at once.

Only an accelerator: whatever it loses, the sweep of the deadlines finds.
"""

import asyncio
from collections.abc import Callable

import structlog

from gpusession.controller.queue import Priority
from gpusession.errors import StoreUnavailable
from gpusession.store.events import EventBus, EventKind

PAUSE_SECONDS = 1.0
"""After a stream that could not be read; the sweep goes on meanwhile."""

WAKES = {
    EventKind.CLOSE: Priority.EXPLICIT,
    EventKind.RETURNED: Priority.EXPLICIT,
    EventKind.REVOKED: Priority.REVOKED,
}
"""What a look can act upon now. A disconnect has its grace first: the sweep sees to it."""

log = structlog.get_logger()


class EventFollower:
    """One task that turns events into keys."""

    def __init__(
        self, bus: EventBus, *, consumer: str, suspect: Callable[[str, Priority], None]
    ) -> None:
        self._bus = bus
        self._consumer = consumer
        self._suspect = suspect

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                async for event in self._bus.consume(self._consumer):
                    priority = WAKES.get(event.kind)
                    if priority is not None:
                        self._suspect(event.uid, priority)
            except StoreUnavailable as error:
                log.warning("event stream not read", error=str(error))
            await asyncio.sleep(PAUSE_SECONDS)
