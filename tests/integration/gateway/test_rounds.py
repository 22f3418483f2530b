"""Pings and silence, at a real gateway process with shortened times."""

import asyncio
from datetime import timedelta

import aiohttp
import pytest
from tests.support.gateway_rig import Desk, Known, Socket, StartGateway, eventually
from tests.support.redis_server import RedisServer

PING, SILENCE = 0.2, 2.0

SHORT = {
    "heartbeat_period": timedelta(seconds=0.2),
    "heartbeat_threshold": timedelta(seconds=9),
}


@pytest.fixture(scope="module")
def module_settings() -> dict[str, object]:
    """Ping after a fifth of a second, and wait for ten."""
    return {
        "ping_period": timedelta(seconds=PING),
        "silence_limit": timedelta(seconds=SILENCE),
    }


async def test_a_client_that_answers_pings_stays_and_beats(front: Desk) -> None:
    """It need not say a word by itself; its pongs are its beats."""
    known = await front.known()
    async with front.reading(known) as line:
        assert line.welcome["pingSeconds"] == PING
        await eventually(lambda: front.has_beaten(known, 5), what="five beats")

        assert not line.raw.closed


async def test_a_client_that_beats_is_pinged_in_its_time(front: Desk) -> None:
    """By it a client knows that its gateway lives, whatever it says itself."""
    known = await front.known()
    async with front.socket(known, autoping=False) as line:
        await eventually(lambda: _is_pinged(line, within=PING * 20), what="a ping")


@pytest.mark.timeout(60)  # it starts a gateway of its own
async def test_a_short_heartbeat_pings_who_says_nothing_and_nobody_else(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Pongs of a client that beats would only double its beats."""
    desk = await start_gateway(own_redis)
    beat = {"heartbeat_period": timedelta(seconds=0.4), "heartbeat_threshold": timedelta(seconds=9)}
    quiet, loud = await desk.known(**beat), await desk.known(**beat)

    async with desk.socket(quiet, autoping=False) as line:
        async with asyncio.timeout(10):
            assert (await line.raw.receive()).type is aiohttp.WSMsgType.PING
    async with desk.socket(loud, autoping=False) as line:
        assert not await _is_pinged(line, within=2.0)


@pytest.mark.parametrize("times", [1, 3], ids=["once", "and back, and again"])
async def test_a_heartbeat_that_becomes_short_pings_who_only_answers_in_time(
    own_redis: RedisServer, start_gateway: StartGateway, times: int
) -> None:
    """It came with 30 s x 3: by that its first ping is far away."""
    desk = await start_gateway(own_redis)
    known = await desk.known()
    async with desk.reading(known) as line:
        for long in (False, True, False)[:times]:
            await desk.reopen(known, **({} if long else SHORT))

        await eventually(lambda: desk.has_beaten(known, 5), what="five beats")
        assert not line.raw.closed


async def test_a_heartbeat_that_becomes_long_pings_no_more_than_it_needs(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """What was set for the short one is forgotten."""
    desk = await start_gateway(own_redis)
    known = await desk.known(**SHORT)
    async with desk.reading(known) as line:
        await eventually(lambda: desk.has_beaten(known, 2), what="two beats")
        await desk.reopen(known)
        await line.hears(type="welcome", pingSeconds=30)
        await line.say("beat")
        await line.hears(of="beat")  # no pong from before is on its way any more
        beaten = await desk.signs(known)
        await asyncio.sleep(1.0)

        assert await desk.signs(known) == beaten
        assert not line.raw.closed


async def _is_pinged(line: Socket, *, within: float) -> bool:
    """Beat all the while, and tell whether a ping comes."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within
    while loop.time() < until:
        await line.say("beat")
        if (await line.raw.receive()).type is aiohttp.WSMsgType.PING:
            return True
        await asyncio.sleep(0.02)
    return False


async def test_a_silent_client_is_closed_and_counts_as_gone(front: Desk) -> None:
    """4408 after the silence, and a seen disconnect in the record."""
    known = await front.known()
    async with front.socket(known, autoping=False) as line:
        async with asyncio.timeout(10):
            while (await line.raw.receive()).type is aiohttp.WSMsgType.PING:
                pass

        assert line.raw.close_code == 4408
    await eventually(lambda: _is_left(front, known), what="the disconnect")


async def _is_left(front: Desk, known: Known) -> bool:
    return (await front.record(known)).dc is not None


async def test_a_client_that_only_beats_stays(front: Desk) -> None:
    """Frames are heard as well as pongs."""
    async with front.socket(await front.known(), autoping=False) as line:
        for _ in range(10):
            await line.say("beat")
            await asyncio.sleep(SILENCE / 8)

        assert not line.raw.closed
