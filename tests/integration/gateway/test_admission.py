"""Who is let in at a real gateway process, and that nobody is dropped without a word."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

import aiohttp
import pytest
from tests.support.gateway_rig import Desk, Known, Socket, StartGateway, eventually
from tests.support.redis_server import RedisServer

from gpusession.gateway.admission import AT_THE_DOOR

NARROW = {"connections_least": 1, "connections_most": 2}
SLOW = {"user_rate": 0.01, "user_burst": 1}


async def _refused(front: Desk, known: Known) -> aiohttp.WSServerHandshakeError:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await front.http.ws_connect(front.gateway.url + "/v1/connect", headers=known.headers)
    return refused.value


async def test_a_full_gateway_tells_newcomers_when_to_come_again(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """429 with a time; a place that is left is given again."""
    front = await start_gateway(own_redis, **NARROW)
    known = await front.known()
    async with front.socket(known):
        async with front.socket(known):
            refused = await _refused(front, known)
            assert refused.status == 429
            assert refused.headers is not None
            assert int(refused.headers["Retry-After"]) == 5
        await eventually(lambda: _gets_in(front, known), what="a place")


async def _gets_in(front: Desk, known: Known) -> bool:
    try:
        async with front.socket(known):
            return True
    except aiohttp.WSServerHandshakeError:
        return False


async def test_who_is_refused_for_being_too_many_has_beaten_all_the_same(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """A limit of ours must never end a Session."""
    front = await start_gateway(own_redis, **NARROW)
    inside, outside = await front.known(), await front.known()
    async with front.socket(inside), front.socket(inside):
        await _refused(front, outside)

    assert await front.signs(outside) == 1


async def test_a_browser_that_is_one_too_many_has_beaten_all_the_same(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Its token comes after the upgrade, so it is heard before it is sent away."""
    front = await start_gateway(own_redis, **NARROW)
    inside, outside = await front.known(), await front.known()
    async with (
        front.socket(inside),
        front.socket(inside),
        front.http.ws_connect(front.gateway.url + "/v1/connect") as raw,
    ):
        answer = await Socket(raw).ask("hello", token=outside.token)

        assert answer["reason"] == "TooManyConnections"
        assert await Socket(raw).closed() == 1013
    assert await front.signs(outside) == 1


async def test_a_full_gateway_hears_out_only_so_many(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Who says nothing at the door must not cost more sockets than those inside."""
    front = await start_gateway(own_redis, **NARROW, hello_timeout=timedelta(minutes=5))
    inside, url = await front.known(), front.gateway.url + "/v1/connect"
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(front.socket(inside))
        connector = aiohttp.TCPConnector(limit=0)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        for raw in await asyncio.gather(*(http.ws_connect(url) for _ in range(AT_THE_DOOR))):
            stack.push_async_callback(raw.close)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(url)

        assert refused.value.status == 429


async def test_too_many_connects_of_a_user_are_refused_with_a_time(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """One, then one in a hundred seconds; another user's are not touched, and it has beaten."""
    front = await start_gateway(own_redis, **SLOW)
    known, other = await front.known(user="ann"), await front.known(user="eve")
    async with front.socket(known):
        before = (await front.record(known)).n
        refused = await _refused(front, known)

        assert refused.status == 429
        assert refused.headers is not None
        assert 90 <= int(refused.headers["Retry-After"]) <= 100
        assert (await front.record(known)).n == before + 1
    async with front.socket(other):
        pass


async def test_a_refusal_after_the_upgrade_is_a_frame_and_a_code(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """1013: later, or elsewhere."""
    front = await start_gateway(own_redis, **SLOW)
    known = await front.known(user="ann")
    async with front.socket(known):
        pass
    async with front.http.ws_connect(front.gateway.url + "/v1/connect") as raw:
        answer = await Socket(raw).ask("hello", token=known.token)

        assert answer["reason"] == "TooManyRequests"
        assert await Socket(raw).closed() == 1013


async def test_a_redis_that_hangs_lowers_the_limit(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """It comes back by itself; who is in stays in."""
    front = await start_gateway(own_redis, redis_timeout=timedelta(seconds=1))
    known = await front.known()
    async with front.socket(known) as line:
        own_redis.pause()
        await line.say("beat")
        await eventually(lambda: _is_low(front), what="a lower limit")
        own_redis.resume()

        assert (await line.next())["type"] in {"error", "ack"}
        assert (await line.ask("beat"))["type"] == "ack"


async def _is_low(front: Desk) -> bool:
    return await front.metric("gpusession_gateway_connection_limit") < 20_000
