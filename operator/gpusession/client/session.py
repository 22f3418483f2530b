"""A Session as its client holds it: connected for as long as the with block lasts."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Self

from gpusession.api.frames import ClientFrame, Close, Welcome
from gpusession.client.backoff import Timing
from gpusession.client.calls import Calls
from gpusession.client.connection import LostError, RefusedError
from gpusession.client.credentials import Credentials
from gpusession.client.errors import GatewayUnreachable, GaveUp, Left, SessionEnded
from gpusession.client.keeper import Keeper, busy_until
from gpusession.client.standing import Event, PendingDestroy, Standing

log = logging.getLogger("gpusession.client")

_RENEWALS = 3
"""A busy lease is renewed so often within its length: two renewals may get lost."""

BUSY_LEASE = timedelta(minutes=2)
"""How long a Session stays busy after its client died; renewed each 40 s."""

LONGEST_BUSY = timedelta(days=1)
"""The gateway takes no longer lease in one word; a busy block may last for ever."""


class Session:
    """A Session with a connection that is kept; `connect` makes one.

    Leaving the with block is a disconnect: the Session's grace runs. Only `close` ends it.
    """

    def __init__(
        self,
        calls: Calls,
        credentials: Credentials,
        *,
        session: str | None = None,
        timing: Timing,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._timing = timing
        self._standing = Standing()
        self._keeper = Keeper(
            self._standing, calls, credentials, session=session, timing=timing, chance=chance
        )

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keeper.run(), name="gpusession client")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._keeping.cancel()
        await asyncio.wait({self._keeping})
        self._standing.finish(Left())

    @property
    def pending_destroy(self) -> PendingDestroy | None:
        """The end that was announced and not cancelled."""
        return self._standing.pending

    @property
    def facts(self) -> Welcome | None:
        """What the gateway said of this Session when it last welcomed its client."""
        return self._standing.facts

    @property
    def is_connected(self) -> bool:
        """Whether a gateway holds a connection right now."""
        return self._standing.connection is not None

    async def connected(self, *, within: timedelta) -> None:
        """Wait for a connection; raises GatewayUnreachable, or GaveUp."""
        await self._standing.open_connection(_moment(within))

    async def activity(self, *, busy: timedelta | None = None) -> None:
        """Report that somebody did something, or that work goes on for so long yet.

        Returns once the gateway has recorded it. Raises GatewayUnreachable where none did
        in time; it is then reported with the next beat all the same.
        """
        lease = timedelta() if busy is None else busy
        if not timedelta() <= lease <= LONGEST_BUSY:
            raise ValueError(f"a busy lease is at most {LONGEST_BUSY}")
        until = _moment(lease)
        try:
            await self._deliver(lambda: busy_until(until), within=self._timing.ack_timeout)
        except (GatewayUnreachable, asyncio.CancelledError):
            self._keeper.owe(until)
            raise

    @asynccontextmanager
    async def busy(self, lease: timedelta = BUSY_LEASE) -> AsyncIterator[None]:
        """Keep the Session from being idle while the block runs, by a lease that is renewed.

        If this process dies the lease still holds for its length. A gateway that cannot be
        reached stops nothing here: the lease is reported when one can.
        """
        await self._renew(lease)
        renewing = asyncio.create_task(self._keep_renewing(lease))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})

    async def close(self) -> None:
        """End the Session; returns once that is recorded, or if it was ending anyway.

        Raises GatewayUnreachable where no gateway recorded it in time.
        """
        self._keeper.hurry_to_close()
        try:
            await self._deliver(Close, within=self._timing.close_patience)
        except SessionEnded:
            return
        self._standing.finish(SessionEnded("ExplicitClose"))

    def events(self) -> AsyncIterator[Event]:
        """Tell of all changes, beginning with how it stands; the last one is Ended."""
        return self._standing.events()

    async def ended(self) -> str:
        """Wait until the Session ends and say why; raises GaveUp for any other end."""
        last_word = await self._standing.finished()
        if isinstance(last_word, SessionEnded):
            return last_word.reason
        raise last_word

    async def _deliver(self, make: Callable[[], ClientFrame], *, within: timedelta) -> None:
        give_up_at = _moment(within)
        while True:
            connection = await self._standing.open_connection(give_up_at)
            try:
                await connection.ask(make())
            except LostError:
                self._standing.drop(connection)  # its reader comes to know it next
            except RefusedError as error:
                raise GatewayUnreachable(f"the gateway refused: {error}") from error
            else:
                return

    async def _renew(self, lease: timedelta) -> None:
        try:
            await self.activity(busy=lease)
        except GatewayUnreachable as error:
            log.warning("a busy lease waits for a gateway: %s", error)

    async def _keep_renewing(self, lease: timedelta) -> None:
        while True:
            await asyncio.sleep((lease / _RENEWALS).total_seconds())
            try:
                await self._renew(lease)
            except GaveUp:
                return


def _moment(within: timedelta) -> float:
    return asyncio.get_running_loop().time() + within.total_seconds()
