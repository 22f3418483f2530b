"""Counts open connections anew under this gateway's id, and has all of them beat at once.

Needed after Redis lost its data, after a pause, and after any time without Redis. Each is
asked about by a beat first, since beats go by the hundred; a record that is not rebuilt yet
is asked about again every second. The connection stays open all the while.
"""

import asyncio

import structlog

from gpusession.api.session import RecordState
from gpusession.errors import Retry
from gpusession.gateway.clients import Clients
from gpusession.gateway.connection import Connection, pending_notice
from gpusession.gateway.departures import Departures
from gpusession.gateway.lease import GatewayLease
from gpusession.gateway.registry import ConnectionRegistry
from gpusession.gateway.rounds import Rounds
from gpusession.store.clients import Answer, Welcome

PAGE = 200
"""Connections at once: as many beats as go to Redis in one call."""

AGAIN_SECONDS = 1.0
"""Between two looks at records that are missing; the controller needs some seconds."""

log = structlog.get_logger(__name__)


class Recount:
    """Finds connections that are counted under no id, or under an old one."""

    def __init__(
        self,
        registry: ConnectionRegistry,
        *,
        clients: Clients,
        lease: GatewayLease,
        departures: Departures,
        rounds: Rounds,
        wanted: asyncio.Event,
    ) -> None:
        self._registry = registry
        self._clients = clients
        self._lease = lease
        self._departures = departures
        self._rounds = rounds
        self._wanted = wanted

    async def run(self) -> None:
        """Wait until it is wanted, and then repeat until all are counted."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            log.info("all connections beat at once", connections=len(self._registry))
            await self._visit([*self._registry])
            while not self._wanted.is_set() and (strays := self._strays()):
                await asyncio.sleep(AGAIN_SECONDS)
                await self._visit(strays)

    def _strays(self) -> list[Connection]:
        return [one for one in self._registry if self._is_stray(one)]

    def _is_stray(self, one: Connection) -> bool:
        # One that is counted nowhere is on its way in, or out.
        is_elsewhere = one.counted_at not in (None, self._lease.id)
        return not one.is_shut and (is_elsewhere or one.is_count_unsure)

    async def _visit(self, connections: list[Connection]) -> None:
        for start in range(0, len(connections), PAGE):
            await asyncio.gather(*map(self._ask, connections[start : start + PAGE]))

    async def _ask(self, one: Connection) -> None:
        try:
            answer = await self._clients.beat(one.who)
            if answer in (Answer.OK, Answer.RETURNED) and self._is_stray(one):
                answer = await self._count(one)
            await one.settle(answer)
        except Retry as error:
            log.debug("connection not counted yet", uid=one.who.uid, error=str(error))

    async def _count(self, one: Connection) -> Answer:
        one.counted_at, one.is_count_unsure = self._lease.id, True
        before = one.heartbeat_period
        try:
            answer, welcome = await self._clients.connect(one.who, one.counted_at, one.number)
            one.is_count_unsure = welcome is None
        finally:
            if one.left is not None:
                # It ended meanwhile; its departure may have come to Redis before the count.
                self._departures.note(one)
        if welcome is not None:
            await tell_state(one, welcome)
            if one.heartbeat_period is before:  # else an event told a newer one meanwhile
                await self._rounds.change(one, welcome.per)
        return answer


async def tell_state(connection: Connection, welcome: Welcome) -> None:
    """Tell a client how its Session stands, which it may have missed."""
    if welcome.state is RecordState.PENDING:
        await connection.tell_pending(pending_notice(welcome.why, welcome.until))
    else:
        await connection.tell_restored()
