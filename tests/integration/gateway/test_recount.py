"""Redis loses its data under open connections; nobody is closed, all tokens work on."""

import asyncio
from datetime import timedelta

from tests.support.gateway_rig import Desk, Known, StartGateway, eventually
from tests.support.records import now_ms, watch
from tests.support.redis_server import RedisServer

SHORT = {"lease_ttl": timedelta(seconds=4), "redis_timeout": timedelta(seconds=0.5)}


async def _is_counted(front: Desk, known: Known) -> bool:
    sighting = await front.sessions.read(known.uid)
    return sighting is not None and sum(sighting.record.connections.values()) == 1


async def test_an_emptied_redis_costs_no_client_its_connection_or_token(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """The controller rebuilds the record, the gateway puts the token back and counts anew."""
    front = await start_gateway(own_redis, **SHORT)
    known, other = await front.known(), await front.known()
    await front.call("POST", "/v1/heartbeat", other)
    async with front.socket(known) as line:
        await front.redis.call("FLUSHALL")
        assert (await line.ask("beat"))["reason"] == "RecordMissing"
        assert (await front.call("POST", "/v1/heartbeat", other)).status == 503
        await asyncio.sleep(1)
        for one in (known, other):
            await front.reopen(one)

        await eventually(lambda: _is_counted(front, known), what="the count")
        assert (await line.ask("beat"))["type"] == "ack"
    assert (await front.call("POST", "/v1/heartbeat", other)).status == 200


async def test_a_heartbeat_that_changed_while_its_record_was_lost_is_told(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """A record that is made anew changes nothing, so no event says it."""
    front = await start_gateway(own_redis, **SHORT)
    known = await front.known()
    async with front.socket(known) as line:
        await front.redis.call("FLUSHALL")
        await front.reopen(known, heartbeat_period=timedelta(seconds=5))

        told = await line.next()
        assert (told["type"], told["heartbeatSeconds"]) == ("welcome", 5)
        await eventually(lambda: _is_counted(front, known), what="the count")


async def test_a_redis_that_comes_back_empty_is_the_same(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Without persistence a restart is a loss; shorter than the lease, nobody is sent away."""
    front = await start_gateway(own_redis, **SHORT)
    known = await front.known()
    async with front.socket(known) as line:
        own_redis.kill()
        await asyncio.sleep(0.5)
        own_redis.start()
        await front.reopen(known)

        await eventually(lambda: _is_counted(front, known), what="the count")
        assert (await line.ask("beat"))["type"] == "ack"


async def test_two_connections_with_one_token_are_both_counted_again(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """One heals the token; the other must not pass for uncounted ever after."""
    front = await start_gateway(own_redis, **SHORT)
    known = await front.known()
    async with front.socket(known), front.socket(known):
        await front.redis.call("FLUSHALL")
        await front.reopen(known)

        await eventually(lambda: _counts(front, known, 2), what="both")


async def _counts(front: Desk, known: Known, number: int) -> bool:
    return sum((await front.record(known)).connections.values()) == number


async def test_a_revoked_token_is_not_put_back(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """The gateway forgot it when it heard of the revocation."""
    front = await start_gateway(own_redis, **SHORT)
    known = await front.known()
    await front.call("POST", "/v1/heartbeat", known)
    await front.clients.revoke(known.uid)
    await asyncio.sleep(1.0)
    await front.redis.call("FLUSHALL")
    await watch(front.redis)
    await front.reopen(known)

    reply = await front.call("POST", "/v1/heartbeat", known)

    assert reply.reason == (401, "TokenUnknown")


async def test_a_token_of_another_gateway_is_not_believed(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Never verified here: a knock, and come again. Its own gateway may still heal it."""
    front = await start_gateway(own_redis, **SHORT)
    known = await front.known()
    await front.redis.call("FLUSHALL")
    await watch(front.redis, lost=await now_ms(front.redis))
    await front.reopen(known)

    reply = await front.call("POST", "/v1/heartbeat", known)

    assert reply.reason == (503, "StoreUnavailable")
    assert (await front.record(known)).doubt is not None


async def test_after_a_pause_of_redis_every_client_is_heard_at_once(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Nobody waits for the next ping: what was missed is in the answers."""
    front = await start_gateway(own_redis, **SHORT)
    known = await front.known()
    async with front.socket(known):
        before = (await front.record(known)).n
        own_redis.pause()
        await asyncio.sleep(2)
        own_redis.resume()

        await eventually(lambda: _is_beyond(front, known, before), what="a beat")


async def _is_beyond(front: Desk, known: Known, n: int) -> bool:
    return (await front.record(known)).n > n
