"""Ends of connections that Redis learns of late."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

from tests.support.gateway_rig import Desk, Known, StartGateway, eventually
from tests.support.redis_server import RedisServer


async def _is_left(front: Desk, known: Known) -> bool:
    return (await front.record(known)).dc is not None


async def test_an_end_while_redis_hangs_is_told_afterwards(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Else the connection would count for as long as the gateway lives."""
    front = await start_gateway(own_redis, redis_timeout=timedelta(seconds=0.3))
    known = await front.known()
    async with front.socket(known):
        own_redis.pause()
    await asyncio.sleep(1.5)
    own_redis.resume()

    await eventually(lambda: _is_left(front, known), what="the disconnect")
    assert not (await front.record(known)).connections


async def test_many_ends_at_once_are_all_told(front: Desk) -> None:
    """A network that breaks takes everybody along."""
    known = [await front.known() for _ in range(30)]
    async with AsyncExitStack() as stack:
        for one in known:
            await stack.enter_async_context(front.socket(one))

    for one in known:
        await eventually(lambda one=one: _is_left(front, one), what="the disconnect")
