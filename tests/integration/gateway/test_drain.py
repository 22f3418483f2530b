"""SIGTERM at a real gateway process with clients on it."""

import asyncio
import signal
import time
from contextlib import AsyncExitStack
from datetime import timedelta

import aiohttp
import pytest
from tests.support.gateway_rig import Desk, Socket, StartGateway
from tests.support.redis_server import RedisServer

SPREAD = timedelta(seconds=2)


async def _drained(front: Desk) -> None:
    while front.gateway.process.running:
        await asyncio.sleep(0.05)


async def _sent_away(line: Socket) -> float:
    assert await line.closed() == 1012
    return time.monotonic()


async def test_clients_are_sent_away_one_by_one_and_none_counts_as_gone(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """1012 at random times, no evidence of a disconnect, and no lease left behind."""
    front = await start_gateway(own_redis, drain_spread=SPREAD)
    known = [await front.known() for _ in range(8)]
    async with AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(front.socket(one)) for one in known]
        front.gateway.process.signal(signal.SIGTERM)
        times = await asyncio.gather(*map(_sent_away, lines))
    await _drained(front)

    assert max(times) - min(times) > SPREAD.total_seconds() / 8
    assert await front.redis.call("ZCARD", "gs:gateways") == 0
    records = [await front.record(one) for one in known]
    assert {(record.dc, len(record.connections)) for record in records} == {(None, 0)}
    assert front.gateway.process.exit_code() == 0


async def test_a_draining_gateway_takes_no_newcomer_and_still_takes_beats(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Not ready, 503 for connects; who is here is served to the last."""
    front = await start_gateway(own_redis, drain_spread=SPREAD)
    known = await front.known()
    async with front.socket(known):
        front.gateway.process.signal(signal.SIGTERM)
        await asyncio.sleep(0.3)

        assert (await front.probe("/readyz"))[0] == 503
        assert (await front.call("POST", "/v1/heartbeat", known)).status == 200
        with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
            await front.http.ws_connect(front.gateway.url + "/v1/connect", headers=known.headers)


async def test_a_gateway_without_redis_goes_all_the_same(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Its lease runs out and says the rest."""
    front = await start_gateway(own_redis, redis_timeout=timedelta(seconds=0.2))
    async with front.socket(await front.known()):
        own_redis.kill()
        front.gateway.process.signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            await _drained(front)

    assert front.gateway.process.exit_code() == 0
