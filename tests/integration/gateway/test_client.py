"""The client library at a real gateway: what one says, the other understands."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.support.client_rig import QUICK, until
from tests.support.gateway_rig import NAMESPACE, Desk, Known, eventually
from tests.support.records import watch
from tests.support.redis_server import RedisServer

from gpusession.api.frames import NewToken, Refresh
from gpusession.api.session import RecordState
from gpusession.client import (
    GaveUp,
    Session,
    SessionEnded,
    SessionRevoked,
    TokenRefused,
    WrongSession,
    connect,
)
from gpusession.client.connection import Connection, dial
from gpusession.client.opening import calling, credentials_for
from gpusession.client.single import Single
from gpusession.store.sessions import Record

StartGateway = Callable[..., Awaitable[Desk]]

TIMING = replace(QUICK, patience=timedelta(seconds=10), ack_timeout=timedelta(seconds=5))


@pytest.fixture(scope="module")
def module_settings() -> dict[str, object]:
    """Wait little for a controller that is not there."""
    return {"close_wait": timedelta(seconds=0.3)}


@asynccontextmanager
async def client_of(front: Desk, known: Known, **more: Any) -> AsyncIterator[Session]:
    """Give a connected Session."""
    async with connect(front.gateway.url, token=known.token, timing=TIMING, **more) as session:
        yield session


async def shows(front: Desk, known: Known, what: Callable[[Record], object]) -> None:
    """Wait until the record shows something."""

    async def look() -> bool:
        return bool(what(await front.record(known)))

    await eventually(look, what="the record")


async def test_beats_are_recorded(front: Desk) -> None:
    """One after the other, at the period of the Session."""
    known = await front.known(heartbeat_period=timedelta(seconds=0.2))
    before = (await front.record(known)).n

    async with client_of(front, known):
        await shows(front, known, lambda record: record.n > before + 4)


async def test_busy_block_is_recorded(front: Desk) -> None:
    """When it begins, the record says until when."""
    known = await front.known()

    async with client_of(front, known) as session, session.busy(timedelta(minutes=5)):
        assert (await front.record(known)).busy is not None


async def test_close_is_recorded(front: Desk) -> None:
    """It is when close returns."""
    known = await front.known()

    async with client_of(front, known) as session:
        await session.close()
        assert (await front.record(known)).close


async def test_leaving_is_a_seen_disconnect(front: Desk) -> None:
    """The grace runs from there on, and nothing was closed."""
    known = await front.known()

    async with client_of(front, known):
        pass

    await shows(front, known, lambda record: record.dc is not None)
    assert not (await front.record(known)).close


async def test_announced_end_is_called_off_by_an_activity(front: Desk) -> None:
    """The client hears of both, and keeps its connection."""
    known = await front.known()
    async with client_of(front, known) as session:
        await front.pending(known, "Idle")
        await until(lambda: session.pending_destroy, "the announcement")
        assert session.pending_destroy is not None
        assert (session.pending_destroy.reason, session.pending_destroy.cancellable) == (
            "Idle",
            True,
        )

        await session.activity()
        await until(lambda: session.pending_destroy is None, "its end")


async def test_end_of_the_session_is_told_with_its_reason(front: Desk) -> None:
    """As the record has it."""
    known = await front.known()
    async with client_of(front, known) as session:
        await front.pending(known, "LifetimeExceeded")
        await until(lambda: session.pending_destroy, "the announcement")
        await front.sessions.mark(known.uid, RecordState.RELEASING)

        assert await session.ended() == "LifetimeExceeded"


async def test_revocation_ends_a_connected_client(front: Desk) -> None:
    """At once, not with its next beat."""
    known = await front.known()
    async with client_of(front, known) as session:
        await front.clients.revoke(known.uid)
        assert await session.ended() == "Revoked"
        with pytest.raises(SessionRevoked):
            await session.activity()


async def _revoked(front: Desk, known: Known) -> None:
    await front.clients.revoke(known.uid)


async def _ending(front: Desk, known: Known) -> None:
    await front.sessions.mark(known.uid, RecordState.RELEASING)


async def _emptied(front: Desk, known: Known) -> None:
    await watch(front.redis)  # the controller knows this server, which has lost nothing lately
    await front.redis.call("DEL", f"gs:t:{known.uid}")


@pytest.mark.parametrize(
    ("happens", "error"),
    [(_revoked, SessionRevoked), (_ending, SessionEnded), (_emptied, TokenRefused)],
    ids=["revoked", "ending", "token gone"],
)
async def test_client_that_comes_too_late_is_told_why(
    front: Desk, happens: Callable[[Desk, Known], Awaitable[None]], error: type[GaveUp]
) -> None:
    """Before the upgrade there is only a status; the class is right all the same."""
    known = await front.known()
    await happens(front, known)

    with pytest.raises(error):
        async with client_of(front, known):
            pass


async def test_token_of_another_session_is_refused(front: Desk) -> None:
    """Where the client said which Session it means."""
    known = await front.known()

    async with client_of(front, known, session=f"{NAMESPACE}/{known.name}"):
        pass
    with pytest.raises(WrongSession):
        async with client_of(front, known, session=f"{NAMESPACE}/other"):
            pass


async def test_refresh_gives_a_token_that_opens_a_connection(front: Desk) -> None:
    """What the client does after two thirds of a token's life."""
    known = await front.known()
    async with calling(front.gateway.url, tls=None, timing=TIMING) as calls:
        opened = await dial(calls, known.token, None, TIMING)
        assert isinstance(opened, Connection)
        heard: list[object] = []
        async with reading(opened, heard):
            answer = await opened.ask(Refresh())

    assert isinstance(answer, NewToken)
    async with client_of(front, replace(known, token=answer.token)) as session:
        await session.activity()


@asynccontextmanager
async def reading(connection: Connection, heard: list[object]) -> AsyncIterator[None]:
    """Have somebody read a connection."""
    task = asyncio.create_task(connection.read(heard.append))
    try:
        yield
    finally:
        await connection.leave()
        await task


async def test_single_calls_are_recorded(front: Desk) -> None:
    """Beat, activity and close without a connection, and so without a disconnect."""
    known = await front.known()
    async with calling(front.gateway.url, tls=None, timing=TIMING) as calls:
        credentials = credentials_for(known.token, calls, TIMING)
        single = Single(calls, credentials, session=None, timing=TIMING)
        assert (await single.beat()).name == known.name
        await single.activity(timedelta(minutes=1))
        await single.close()
    record = await front.record(known)

    assert (record.close, record.busy is not None, record.dc) == (True, True, None)


@pytest.mark.timeout(60)  # a gateway starts twice
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_client_outlives_its_gateway(
    own_redis: RedisServer, start_gateway: StartGateway, number: signal.Signals
) -> None:
    """Killed or drained: the client is back as soon as one serves again."""
    front = await start_gateway(own_redis)
    known = await front.known(heartbeat_period=timedelta(seconds=0.2))
    async with client_of(front, known) as session:
        front.gateway.process.signal(number)
        await until(lambda: not session.is_connected, "the loss to be seen")
        await until(lambda: not front.gateway.process.running, "the end of the gateway")
        front.gateway.process.kill()
        front.gateway.process.start()
        await session.connected(within=timedelta(seconds=30))
        await session.activity()


@pytest.mark.timeout(60)
async def test_client_outlives_an_outage_of_redis(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """The gateway closes with 1013 and lets nobody in; then all is well again."""
    front = await start_gateway(own_redis, lease_ttl=timedelta(seconds=1))
    known = await front.known()
    async with client_of(front, known) as session:
        own_redis.pause()
        await until(lambda: not session.is_connected, "the loss to be seen")
        own_redis.resume()
        await session.connected(within=timedelta(seconds=30))
        await session.activity()
