"""A gateway's lease through cuts, pauses and losses, with a Redis of the test's own."""

import asyncio
from datetime import timedelta

import aiohttp
import pytest
from tests.support.gateway_rig import Desk, Known, StartGateway, eventually
from tests.support.redis_server import RedisServer

from gpusession.store.gateways import GatewayRegistry

TTL = timedelta(seconds=2)
SHORT = {"lease_ttl": TTL, "redis_timeout": timedelta(seconds=0.2)}


async def _gateways(front: Desk) -> set[str]:
    return {name.decode() for name in await front.redis.call("ZRANGE", "gs:gateways", 0, -1)}


async def _is_counted(front: Desk, known: Known, besides: frozenset[str] = frozenset()) -> bool:
    sighting = await front.sessions.read(known.uid)
    return sighting is not None and bool(set(sighting.record.connections) - besides)


async def _ready(front: Desk, status: int) -> bool:
    return (await front.probe("/readyz"))[0] == status


async def test_a_gateway_announces_itself_and_is_ready(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Under its name and a part by chance, so that no life takes another's place."""
    front = await start_gateway(own_redis, **SHORT)
    await eventually(lambda: _ready(front, 200), what="ready")
    await asyncio.sleep(TTL.total_seconds() * 2)

    (name,) = await _gateways(front)
    assert name.startswith("gw-")
    assert await GatewayRegistry(front.redis).lapsed() == []


async def test_a_container_that_starts_again_takes_another_lease(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """It has the Pod's name still, and the lease of its earlier life may yet run."""
    first = await start_gateway(own_redis, **SHORT)
    await eventually(lambda: _ready(first, 200), what="ready")
    first.gateway.process.kill()
    second = await start_gateway(own_redis, **SHORT)
    await eventually(lambda: _ready(second, 200), what="ready")

    names = await _gateways(second)
    assert len(names) == 2
    assert {name.rpartition("-")[0] for name in names} == {"gw"}


async def test_a_killed_gateway_leaves_a_lease_that_runs_out(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Its clients count as just heard, never as gone."""
    front = await start_gateway(own_redis, **SHORT)
    known = await front.known()
    async with front.socket(known):
        front.gateway.process.kill()
    registry = GatewayRegistry(front.redis)
    (name,) = await _gateways(front)

    await eventually(registry.lapsed, what="the end of the lease")
    assert await registry.lapse(name) == 0
    record = await front.record(known)
    assert (record.dc, dict(record.connections)) == (None, {})


async def test_cut_from_redis_for_longer_than_the_lease_sends_clients_away(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """1013 and not ready: another gateway may be better off. Then it is back by itself."""
    front = await start_gateway(own_redis, **SHORT)
    known = await front.known()
    async with front.socket(known) as line:
        own_redis.pause()
        assert await line.closed() == 1013
    assert await _ready(front, 503)
    assert (await front.call("POST", "/v1/heartbeat", known)).reason == (503, "StoreUnavailable")
    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
        await front.http.ws_connect(front.gateway.url + "/v1/connect", headers=known.headers)

    own_redis.resume()
    await eventually(lambda: _ready(front, 200), what="ready again")
    assert (await front.record(known)).dc is None
    async with front.socket(known) as line:
        assert (await line.ask("beat"))["type"] == "ack"


async def test_a_cut_shorter_than_the_lease_closes_nobody(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """A failover of some seconds is nothing to a client."""
    front = await start_gateway(own_redis, lease_ttl=timedelta(seconds=10))
    known = await front.known()
    async with front.socket(known) as line:
        own_redis.pause()
        assert (await line.ask("beat"))["reason"] == "StoreUnavailable"
        own_redis.resume()
        assert (await line.ask("beat"))["type"] == "ack"
    assert len(await _gateways(front)) == 1


async def test_a_gateway_that_was_paused_counts_its_clients_anew(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Its id may have been taken apart meanwhile; nobody is closed for that."""
    front = await start_gateway(own_redis, **SHORT)
    known = await front.known()
    async with front.socket(known) as line:
        before = frozenset(await _gateways(front))
        front.gateway.process.pause()
        await asyncio.sleep(TTL.total_seconds() * 1.5)
        front.gateway.process.resume()

        await eventually(lambda: _is_counted(front, known, before), what="a new count")
        assert (await line.ask("beat"))["type"] == "ack"


async def test_a_client_that_went_while_its_gateway_was_paused_is_no_evidence(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Who was asleep saw nothing."""
    front = await start_gateway(own_redis, **SHORT)
    known = await front.known()
    async with front.socket(known) as line:
        front.gateway.process.pause()
        line.raw.get_extra_info("socket").shutdown(2)
    await asyncio.sleep(TTL.total_seconds() * 1.5)
    front.gateway.process.resume()
    await eventually(lambda: _ready(front, 200), what="ready again")
    await asyncio.sleep(0.5)

    assert (await front.record(known)).dc is None
