"""Knowing a real server again, and noticing that it is another."""

import asyncio
from datetime import timedelta

import pytest
from tests.support.records import moment, now_ms
from tests.support.redis_server import RedisServer

from gpusession.errors import StoreUnavailable
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.gateways import GatewayRegistry
from gpusession.store.pulse import Pulse


async def test_first_look_is_nobodys(client: RedisClient) -> None:
    """A new process has watched nothing yet."""
    await Pulse(client).tick()

    assert not (await Pulse(client).tick()).was_ours


async def test_looks_in_a_row_are_ours(client: RedisClient) -> None:
    """Same server, next number."""
    pulse = Pulse(client)

    first, second, third = await pulse.tick(), await pulse.tick(), await pulse.tick()

    assert [first.was_ours, second.was_ours, third.was_ours] == [False, True, True]
    assert [second.number, third.number] == [first.number + 1, first.number + 2]
    assert first.run_id == third.run_id != ""
    assert first.replication_id == third.replication_id != ""
    assert first.role == "master"


async def test_look_comes_with_the_time_of_the_server(client: RedisClient) -> None:
    """No other clock is asked."""
    before = moment(await now_ms(client))

    tick = await Pulse(client).tick()

    assert before <= tick.now <= moment(await now_ms(client))


async def test_second_looker_breaks_the_row(client: RedisClient) -> None:
    """Another leader has looked in between: our watch was not the only one."""
    ours, theirs = Pulse(client), Pulse(client)
    await ours.tick()
    await theirs.tick()

    assert not (await ours.tick()).was_ours
    assert (await ours.tick()).was_ours


async def test_older_copy_breaks_the_row(client: RedisClient) -> None:
    """A failover to a replica that lacks the last second shows an older number."""
    pulse = Pulse(client)
    await pulse.tick()
    await pulse.tick()
    await client.call("HINCRBY", keys.TICK, "n", -1)

    assert not (await pulse.tick()).was_ours


async def test_emptied_server_breaks_the_row(client: RedisClient) -> None:
    """After FLUSHALL there is no last look."""
    pulse = Pulse(client)
    await pulse.tick()
    await client.call("FLUSHALL")

    tick = await pulse.tick()

    assert (tick.was_ours, tick.number) == (False, 1)


async def test_same_number_of_another_looker_is_not_ours(client: RedisClient) -> None:
    """After a loss another leader may have counted as far as we had."""
    ours, theirs = Pulse(client), Pulse(client)
    await ours.tick()
    await client.call("FLUSHALL")
    await theirs.tick()

    assert not (await ours.tick()).was_ours


async def test_look_that_was_refused_breaks_the_row(client: RedisClient) -> None:
    """Even where nothing was written: there was a moment in which we could not see."""
    pulse = Pulse(client)
    await pulse.tick()
    await client.call("RENAME", keys.TICK, "aside")
    await client.call("SET", keys.TICK, "x")
    with pytest.raises(StoreUnavailable):
        await pulse.tick()
    await client.call("RENAME", "aside", keys.TICK)

    assert not (await pulse.tick()).was_ours


async def test_restarted_server_is_another(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """It has a new run id, and no last look of ours."""
    pulse = Pulse(own_client)
    first = await pulse.tick()
    await asyncio.to_thread(own_server.stop)
    await asyncio.to_thread(own_server.start)

    second = await pulse.tick()

    assert (first.run_id == second.run_id, second.was_ours) == (False, False)


async def test_look_that_failed_breaks_the_row(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """Nobody knows whether it was written."""
    pulse = Pulse(own_client)
    await pulse.tick()
    own_server.pause()
    with pytest.raises(StoreUnavailable):
        await pulse.tick()
    own_server.resume()

    assert not (await pulse.tick()).was_ours
    assert (await pulse.tick()).was_ours


async def test_look_counts_the_living_gateways(client: RedisClient) -> None:
    """And names those that fell silent."""
    for gateway in ("a", "b", "c"):
        await GatewayRegistry(client).announce(gateway, timedelta(seconds=10))
    await client.call("ZADD", keys.GATEWAYS, 5, "b")

    tick = await Pulse(client).tick()

    assert (tick.gateways, tick.lapsed) == (2, ("b",))
