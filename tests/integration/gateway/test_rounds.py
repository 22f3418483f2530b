"""Pings and silence, at a real gateway process with shortened times."""

import asyncio
from datetime import timedelta

import aiohttp
import pytest
from tests.support.gateway_rig import Desk, Known, Socket, eventually

PING, SILENCE = 0.2, 2.0


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


async def test_a_client_that_beats_is_not_pinged(front: Desk) -> None:
    """Its pongs would only double its beats; ten ping periods pass without one."""
    known = await front.known()
    async with front.socket(known, autoping=False) as line:
        await eventually(lambda: _is_left_in_peace(line, PING * 10), what="no ping")


async def _is_left_in_peace(line: Socket, seconds: float) -> bool:
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        await line.say("beat")
        if (await line.raw.receive()).type is aiohttp.WSMsgType.PING:
            return False
        await asyncio.sleep(0.02)
    return True


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
