"""Leases of gateways in real servers, and what becomes of a dead one's connections."""

from datetime import datetime, timedelta

import pytest
from tests.support.records import TOKEN, UID, bend, moment, open_with_token, read_record

from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import ClientStore
from gpusession.store.gateways import GatewayRegistry
from gpusession.store.sessions import SessionStore

LEASE = timedelta(seconds=10)
DEAD = "gw-dead"


@pytest.fixture
def gateways(client: RedisClient) -> GatewayRegistry:
    """Give the registry, empty."""
    return GatewayRegistry(client)


async def die(client: RedisClient, *uids: str) -> None:
    """Have a gateway with connections of these Sessions, whose lease has run out."""
    for uid in uids:
        await open_with_token(client, uid=uid, name=uid)
        for number in "12":
            await ClientStore(client).connect(uid, TOKEN, DEAD, number)
        await bend(client, uid, hb=5)
    await client.call("ZADD", keys.GATEWAYS, 5, DEAD)


async def test_announced_gateway_lives(gateways: GatewayRegistry) -> None:
    """A first lease is new, a second one continues it."""
    first = await gateways.announce("a", LEASE)
    second = await gateways.announce("a", LEASE)

    assert (first, second, await gateways.lapsed()) == (False, True, [])


async def test_a_record_tells_when_the_gateway_that_heard_it_showed_itself(
    client: RedisClient, gateways: GatewayRegistry
) -> None:
    """Each renewal does; another gateway's says nothing."""
    await open_with_token(client)
    await gateways.announce("a", LEASE)
    await ClientStore(client).beats([(UID, TOKEN)], "a")
    await client.call("ZADD", keys.ANNOUNCED, 5, "a")

    assert await _announced(client) == moment(5)
    await gateways.announce("b", LEASE)
    assert await _announced(client) == moment(5)
    await gateways.announce("a", LEASE)
    assert (await _announced(client) or moment(0)) > moment(5)


@pytest.mark.parametrize("how", ["leaves", "leaves clients behind", "lapses"])
async def test_a_gateway_that_is_gone_is_waited_for_no_longer(
    client: RedisClient, gateways: GatewayRegistry, how: str
) -> None:
    """Its Sessions have a whole threshold; then their silence is theirs."""
    await open_with_token(client)
    await gateways.announce("a", LEASE)
    await ClientStore(client).beats([(UID, TOKEN)], "a")
    if how != "leaves":
        await ClientStore(client).connect(UID, TOKEN, "a", "1")
    if how == "lapses":
        await client.call("ZADD", keys.GATEWAYS, 5, "a")
        await gateways.lapse("a")
    else:
        await gateways.leave("a")

    assert await _announced(client) is None


async def _announced(client: RedisClient) -> datetime | None:
    sighting = await SessionStore(client).read(UID)
    assert sighting is not None
    return sighting.announced


async def test_gateway_learns_that_its_lease_was_over(
    client: RedisClient, gateways: GatewayRegistry
) -> None:
    """Whoever comes back late knows that its counts may be gone."""
    await die(client)

    assert not await gateways.announce(DEAD, LEASE)
    assert await gateways.lapsed() == []


async def test_leave_without_connections_leaves_nothing(
    client: RedisClient, gateways: GatewayRegistry
) -> None:
    """A drained gateway needs no clearing."""
    await gateways.announce("a", LEASE)

    await gateways.leave("a")

    assert (await gateways.lapsed(), await client.call("KEYS", "*")) == ([], [])


async def test_leave_with_connections_is_a_lapse(
    client: RedisClient, gateways: GatewayRegistry
) -> None:
    """What it could not take back itself is taken back for it."""
    await open_with_token(client)
    await gateways.announce("a", LEASE)
    await ClientStore(client).connect(UID, TOKEN, "a", "1")

    await gateways.leave("a")

    assert await gateways.lapsed() == ["a"]


async def test_lapse_gives_a_fresh_heartbeat(
    client: RedisClient, gateways: GatewayRegistry
) -> None:
    """Nobody was seen to go: the clients have a whole threshold to come to another gateway."""
    await die(client, UID)

    left = await gateways.lapse(DEAD)

    record = await read_record(client)
    assert (left, record.connections, record.dc) == (0, {}, None)
    assert (record.hb > moment(5), record.n) == (True, 3)
    assert await gateways.lapsed() == []


async def test_lapse_keeps_the_connections_of_others(
    client: RedisClient, gateways: GatewayRegistry
) -> None:
    """Only the dead gateway's count goes."""
    await die(client, UID)
    await ClientStore(client).connect(UID, TOKEN, "gw-b", "1")

    await gateways.lapse(DEAD)

    assert (await read_record(client)).connections == {"gw-b": 1}


async def test_lapse_goes_page_by_page(client: RedisClient, gateways: GatewayRegistry) -> None:
    """A gateway of thousands holds up nobody, and stays listed until the last page."""
    await die(client, "1", "2", "3", "4", "5")

    pages = [await gateways.lapse(DEAD, 2), await gateways.lapse(DEAD, 2)]
    between = await gateways.lapsed()
    pages.append(await gateways.lapse(DEAD, 2))

    assert (pages, between, await gateways.lapsed()) == ([3, 1, 0], [DEAD], [])


async def test_page_is_bounded(client: RedisClient, gateways: GatewayRegistry) -> None:
    """However many are asked for, one call takes 200."""
    await client.call("SADD", keys.gateway(DEAD), *map(str, range(500)))

    assert await gateways.lapse(DEAD, 10_000) == 300


async def test_gateway_that_lives_again_is_left_alone(
    client: RedisClient, gateways: GatewayRegistry
) -> None:
    """It came back between the look and the clearing."""
    await die(client, UID)
    await gateways.announce(DEAD, LEASE)

    assert await gateways.lapse(DEAD) == 0
    assert (await read_record(client)).connections == {DEAD: 2}


async def test_lapse_makes_no_record(client: RedisClient, gateways: GatewayRegistry) -> None:
    """Sessions that ended meanwhile stay gone."""
    await client.call("SADD", keys.gateway(DEAD), UID)
    await client.call("ZADD", keys.GATEWAYS, 5, DEAD)

    await gateways.lapse(DEAD)

    assert await client.call("KEYS", "*") == []


async def test_lapse_after_a_loss_does_nothing(
    client: RedisClient, gateways: GatewayRegistry
) -> None:
    """Nothing is left to take back."""
    await die(client, UID)
    await client.call("FLUSHALL")

    assert (await gateways.lapse(DEAD), await client.call("KEYS", "*")) == (0, [])
