"""Tells Redis of connections that have ended, in the end always: none may count for ever.

While Redis is away they wait here. Those of an id that this gateway has given up are left to
the controller, which takes back what was counted under it.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

import structlog

from gpusession.errors import StoreUnavailable
from gpusession.gateway.connection import Connection
from gpusession.gateway.lease import GatewayLease
from gpusession.store.clients import ClientStore

AT_ONCE = 8
"""As many as the client has connections: ten thousand ends are told in about two seconds."""

RETRY_SECONDS = 0.5

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Departure:
    uid: str
    gateway: str
    number: str
    evidence: bool


class Departures:
    """The ends that Redis does not know of yet."""

    def __init__(self, store: ClientStore, lease: GatewayLease) -> None:
        self._store = store
        self._lease = lease
        self._waiting: deque[_Departure] = deque()
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def note(self, one: Connection) -> None:
        """Take in the end of a connection, if it was ever counted; twice is as good as once."""
        if one.counted_at is None:
            return
        departure = _Departure(one.who.uid, one.counted_at, one.number, one.left is True)
        self._waiting.append(departure)
        self._some.set()
        self._none.clear()

    async def settled(self) -> None:
        """Return when Redis knows of all."""
        await self._none.wait()

    async def run(self) -> None:
        """Tell, for ever."""
        while True:
            await self._some.wait()
            page = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            told = await asyncio.gather(*map(self._tell, page))
            again = [one for one, done in zip(page, told, strict=True) if not done]
            self._waiting.extendleft(reversed(again))
            if again:
                await asyncio.sleep(RETRY_SECONDS)
            elif not self._waiting:
                self._some.clear()
                self._none.set()

    async def _tell(self, one: _Departure) -> bool:
        if one.gateway != self._lease.id:
            return True
        # Whoever was cut off when it ended, or is now, saw nothing that proves anything.
        evidence = one.evidence and self._lease.held
        try:
            await self._store.disconnect(one.uid, one.gateway, one.number, evidence=evidence)
        except StoreUnavailable as error:
            log.warning("disconnect not told", uid=one.uid, error=str(error))
            return False
        return True
