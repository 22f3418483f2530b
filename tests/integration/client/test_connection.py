"""One WebSocket: its welcome, its acks, its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.support.client_rig import QUICK, FakeGateway

from gpusession.api.frames import Activity, Beat
from gpusession.client.connection import Connection, LostError, RefusedError, dial
from gpusession.client.ending import Ending
from gpusession.client.opening import calling


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[tuple[Connection, asyncio.Task[Ending]]]:
    """Give an open connection that somebody reads."""
    async with calling(url, tls=None, timing=QUICK) as calls:
        opened = await dial(calls, "token-0", None, QUICK)
        assert isinstance(opened, Connection)
        task = asyncio.create_task(opened.read(lambda _: None))
        yield opened, task
        await opened.leave()
        await task


async def test_acks_answer_in_the_order_of_their_kind(gateway: FakeGateway) -> None:
    """Frames carry no number; those of one kind are answered first come, first served."""
    async with reading(gateway.url) as (connection, _):
        asks = [connection.ask(frame) for frame in (Beat(), Activity(), Beat())]
        answers = await asyncio.gather(*asks)

    assert [getattr(answer, "of", None) for answer in answers] == ["beat", "activity", "beat"]


async def test_end_of_a_connection_fails_what_was_asked(gateway: FakeGateway) -> None:
    """Nobody waits for an ack that cannot come."""
    gateway.rules(unacknowledged=["beat"])
    async with reading(gateway.url) as (connection, task):
        asking = asyncio.create_task(connection.ask(Beat()))
        await asyncio.sleep(0.1)
        gateway.hang_up(1012)
        with pytest.raises(LostError):
            await asking

        assert (await task).code == 1012


async def test_refused_frame_leaves_the_connection_open(gateway: FakeGateway) -> None:
    """An error frame without a close is about that frame."""
    gateway.rules(refusedFrames={"activity": "TooManyRequests"})
    async with reading(gateway.url) as (connection, _):
        with pytest.raises(RefusedError, match="TooManyRequests"):
            await connection.ask(Activity())

        await connection.ask(Beat())


async def test_reason_of_a_close_is_that_of_the_error_before_it(gateway: FakeGateway) -> None:
    """A close frame has little room; the error in front of it says more."""
    gateway.rules(tokens=[])
    async with calling(gateway.url, tls=None, timing=QUICK) as calls:
        ending = await dial(calls, "token-0", None, QUICK)

    assert ending == Ending(4401, "TokenUnknown")
