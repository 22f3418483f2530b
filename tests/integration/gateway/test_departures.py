"""Ends of connections that Redis learns of late."""

import asyncio
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

import aiohttp
from tests.support.gateway_rig import Desk, Known, StartGateway, eventually
from tests.support.redis_server import RedisServer

from gpusession.store import keys


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


async def test_an_end_that_is_told_again_is_one_end(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """A Redis that hung does what it was told before it answers: the other client stays."""
    front = await start_gateway(own_redis, redis_timeout=timedelta(seconds=0.2))
    known = await front.known()
    async with front.socket(known):
        pass  # the server keeps the script from now on
    async with front.socket(known) as stays:
        async with front.socket(known):
            own_redis.pause()
        await asyncio.sleep(1.0)
        own_redis.resume()
        await asyncio.sleep(1.5)  # it has been told twice by now

        assert (await stays.ask("beat"))["type"] == "ack"
        record = await front.record(known)
        assert (sum(record.connections.values()), record.dc) == (1, None)


async def test_a_client_that_leaves_while_all_are_counted_anew_is_counted_no_more(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """The count that is on its way must not outlive it: it would hide every later disconnect."""
    front = await start_gateway(own_redis, lease_ttl=timedelta(seconds=1))
    known = [await front.known() for _ in range(20)]
    async with AsyncExitStack() as stack:
        for one in known:
            await stack.enter_async_context(front.socket(one))
        old = set((await front.record(known[0])).connections)
        await front.redis.call("DEL", keys.GATEWAYS)
        await eventually(lambda: _is_logged(front, "a new id"), what="a new id")
        own_redis.pause()
    own_redis.resume()

    await asyncio.sleep(1.0)
    for one in known:
        assert set((await front.record(one)).connections) <= old


async def _is_logged(front: Desk, words: str) -> bool:
    return words in front.gateway.log_text()


async def test_a_connect_without_an_answer_is_not_counted_for_ever(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Redis hangs at some moment of twenty connects, and does later what it was told."""
    front = await start_gateway(own_redis, redis_timeout=timedelta(seconds=0.2))
    known = await front.known()
    async with front.socket(known):
        pass
    for delay in (0.01, 0.02, 0.03, 0.04):
        coming = [asyncio.create_task(_come_and_go(front, known)) for _ in range(20)]
        await asyncio.sleep(delay)
        own_redis.pause()
        await asyncio.sleep(0.5)
        own_redis.resume()
        await asyncio.gather(*coming)

    await eventually(lambda: _is_alone(front, known), what="no count")


async def _come_and_go(front: Desk, known: Known) -> None:
    with suppress(aiohttp.ClientError, AssertionError):  # refused, or closed before a welcome
        async with front.socket(known):
            pass


async def _is_alone(front: Desk, known: Known) -> bool:
    return not (await front.record(known)).connections


async def test_many_ends_at_once_are_all_told(front: Desk) -> None:
    """A network that breaks takes everybody along."""
    known = [await front.known() for _ in range(30)]
    async with AsyncExitStack() as stack:
        for one in known:
            await stack.enter_async_context(front.socket(one))

    for one in known:
        await eventually(lambda one=one: _is_left(front, one), what="the disconnect")
