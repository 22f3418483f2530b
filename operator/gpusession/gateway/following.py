"""Brings what Redis' event stream tells to the connections of this gateway.

The stream is an accelerator. After it broke off, whoever listens to `resumed` has every
connection beat at once, and the answers say what was missed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import structlog

from gpusession.api.frames import CloseCode
from gpusession.errors import StoreUnavailable
from gpusession.gateway.connection import Connection, pending_notice
from gpusession.gateway.registry import ConnectionRegistry
from gpusession.gateway.rounds import Rounds
from gpusession.gateway.verified import VerifiedTokens
from gpusession.store.events import Event, EventBus, EventKind
from gpusession.tokens import Presented

RETRY_SECONDS = 0.5

REMEMBERED = 10_000
"""Sessions that are over, as many as the stream holds events: their clients get a 410."""

ENDS = frozenset({EventKind.PENDING, EventKind.ENDING, EventKind.GONE})

log = structlog.get_logger(__name__)


class Following:
    """Follows the stream."""

    def __init__(
        self,
        bus: EventBus,
        *,
        registry: ConnectionRegistry,
        verified: VerifiedTokens,
        rounds: Rounds,
        resumed: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._registry = registry
        self._verified = verified
        self._rounds = rounds
        self._resumed = resumed
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._expected: dict[str, set[asyncio.Future[Event]]] = {}
        self.started = asyncio.Event()
        """Set once no event can be missed any more."""

    def is_gone(self, uid: str) -> bool:
        """Whether this Session's record was removed because it is over."""
        return uid in self._gone

    @contextmanager
    def expect(self, uid: str) -> Iterator[asyncio.Future[Event]]:
        """Give what becomes the next event that says that the Session ends."""
        future: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._expected.setdefault(uid, set()).add(future)
        try:
            yield future
        finally:
            waiting = self._expected[uid]
            waiting.discard(future)
            if not waiting:
                del self._expected[uid]

    async def run(self) -> None:
        """Follow for ever."""
        last: str | None = None
        while True:
            try:
                if last is None:
                    last = await self._bus.newest()
                elif self.started.is_set():
                    await self._bus.newest()  # it answers again: only now is there a use in asking
                    self._resumed()
                self.started.set()
                async for event in self._bus.follow(last):
                    last = event.id
                    await self._bring(event)
            except StoreUnavailable as error:
                log.warning("event stream broke off", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _bring(self, event: Event) -> None:
        match event.kind:
            case EventKind.REVOKED:
                self._verified.forget(event.uid)
            case EventKind.ROTATED:
                self._verified.rotate(Presented(event.uid, event.fields.get("digest", "")))
            case EventKind.GONE:
                self._note_gone(event.uid)
            case _:
                pass
        for connection in self._registry.of(event.uid):
            await _tell(connection, event, self._rounds)
        if event.kind in ENDS:
            for future in self._expected.get(event.uid, ()):
                if not future.done():
                    future.set_result(event)

    def _note_gone(self, uid: str) -> None:
        self._verified.forget(uid)
        self._gone[uid] = None
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)


async def _tell(connection: Connection, event: Event, rounds: Rounds) -> None:
    why = event.fields.get("why")
    match event.kind:
        case EventKind.PENDING:
            await connection.tell_pending(pending_notice(why, moment(event.fields.get("until"))))
        case EventKind.RETURNED | EventKind.RESTORED:
            await connection.tell_restored()
        case EventKind.ENDING | EventKind.GONE:
            connection.tell_ended(why or "")
        case EventKind.REVOKED:
            connection.shut(CloseCode.REVOKED, "the Session's tokens were revoked")
        case EventKind.HEARTBEAT:
            if (period := _span(event.fields.get("per"))) is not None:
                await rounds.change(connection, period)
        case EventKind.CLOSE | EventKind.DISCONNECTED | EventKind.ROTATED:
            pass  # not for clients


def moment(milliseconds: str | None) -> datetime | None:
    """Read a time of an event; None where it has none."""
    since = _span(milliseconds)
    return None if since is None else datetime.fromtimestamp(0, UTC) + since


def _span(milliseconds: str | None) -> timedelta | None:
    if milliseconds is None or not milliseconds.isdigit():
        return None
    return timedelta(milliseconds=int(milliseconds))
