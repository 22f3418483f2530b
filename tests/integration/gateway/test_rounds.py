"""Pings and silence, at a real gateway process with shortened times."""

import asyncio
from datetime import timedelta

import aiohttp
import pytest
from tests.support.gateway_rig import Desk, Known, eventually


@pytest.fixture(scope="module")
def module_settings() -> dict[str, object]:
    """Ping five times a second, and wait for six tenths."""
    return {
        "ping_period": timedelta(seconds=0.2),
        "silence_limit": timedelta(seconds=0.6),
    }


async def test_a_client_that_answers_pings_stays_and_beats(front: Desk) -> None:
    """It need not say a word by itself; its pongs are its beats."""
    known = await front.known()
    async with front.socket(known) as line:
        before = (await front.record(known)).n
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await line.raw.receive()  # reads, and so answers pings

        assert not line.raw.closed
        assert (await front.record(known)).n >= before + 5


async def test_a_silent_client_is_closed_and_counts_as_gone(front: Desk) -> None:
    """4408 after the silence, and a seen disconnect in the record."""
    known = await front.known()
    async with front.socket(known, autoping=False) as line:
        async with asyncio.timeout(3):
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
            await asyncio.sleep(0.15)

        assert not line.raw.closed
