"""Rates over all gateways, counted in a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from tests.support.redis_server import RedisServer

from gpusession.errors import StoreUnavailable
from gpusession.store.client import RedisClient
from gpusession.store.rates import Rate, RateStore, connected_rates

OPEN = Rate(step=timedelta(milliseconds=1), depth=timedelta(seconds=1), per_minute=1000)
SLOW = Rate(step=timedelta(seconds=10), depth=timedelta(seconds=30), per_minute=1000)
FEW = Rate(step=timedelta(milliseconds=1), depth=timedelta(seconds=1), per_minute=3)


@pytest.fixture
async def rates(server: RedisServer, client: RedisClient) -> AsyncIterator[RateStore]:
    """Give rates of an empty server."""
    async with connected_rates(server.url, client, redis_timeout=timedelta(seconds=5)) as store:
        yield store


async def test_a_bucket_lets_its_burst_in_and_then_makes_wait(rates: RateStore) -> None:
    """Three at once; the fourth waits until one token has fallen."""
    taken = [await rates.take({"ns:a": SLOW}) for _ in range(4)]

    assert taken[:3] == [timedelta(0)] * 3
    assert timedelta(seconds=9) < taken[3] <= timedelta(seconds=10)


async def test_a_bucket_fills_again(rates: RateStore) -> None:
    """Who waits as told gets in."""
    quick = Rate(step=timedelta(milliseconds=1), depth=timedelta(milliseconds=1), per_minute=1000)

    while await rates.take({"ns:a": quick}):
        pass
    while await rates.take({"ns:a": quick}):
        pass


async def test_a_window_ends_what_bursts_add_up_to(rates: RateStore) -> None:
    """Three in a minute, however fast the bucket fills."""
    taken = [await rates.take({"ns:a": FEW}) for _ in range(4)]

    assert taken[:3] == [timedelta(0)] * 3
    assert timedelta(0) < taken[3] <= timedelta(minutes=2)


async def test_many_at_once_wait_for_each_other(rates: RateStore) -> None:
    """All clients of a gateway that has gone come together."""
    taken = await asyncio.gather(*(rates.take({"ns:a": OPEN}) for _ in range(100)))

    assert taken == [timedelta(0)] * 100


async def test_one_name_does_not_use_up_anothers(rates: RateStore) -> None:
    """A busy namespace makes only itself wait."""
    for _ in range(4):
        await rates.take({"ns:a": SLOW})

    assert await rates.take({"ns:b": SLOW}) == timedelta(0)


async def test_who_is_refused_by_one_bucket_takes_from_none(rates: RateStore) -> None:
    """A user at the limit must not eat up the tokens of the namespace."""
    for _ in range(3):
        await rates.take({"user:ada": SLOW})
    for _ in range(5):
        assert await rates.take({"ns:a": SLOW, "user:ada": SLOW})

    assert [await rates.take({"ns:a": SLOW}) for _ in range(3)] == [timedelta(0)] * 3


async def test_who_is_refused_by_a_window_takes_from_nothing(rates: RateStore) -> None:
    """Nor does a user at the limit use up the minute of the namespace, or its burst."""
    narrow = Rate(step=SLOW.step, depth=SLOW.depth, per_minute=3)
    for _ in range(3):
        await rates.take({"user:ada": FEW})
    for _ in range(5):
        assert await rates.take({"ns:a": narrow, "user:ada": FEW})

    assert [await rates.take({"ns:a": narrow}) for _ in range(3)] == [timedelta(0)] * 3


async def test_a_clock_moved_back_locks_nobody_out(rates: RateStore, client: RedisClient) -> None:
    """A bucket spoken for until next year is at most a full burst ahead."""
    await client.call("SET", "gs:b:ns:a", str(10**15))

    assert await rates.take({"ns:a": SLOW}) <= SLOW.step


async def test_nothing_of_a_rate_stays_for_long(rates: RateStore, client: RedisClient) -> None:
    """A name that is never seen again leaves no key behind."""
    await rates.take({"ns:a": SLOW})

    names = await client.call("KEYS", "gs:*")
    assert len(names) == 2
    assert all([0 < await client.call("PTTL", name) <= 120_000 for name in names])


async def test_without_redis_there_is_no_answer(own_server: RedisServer) -> None:
    """Neither in nor out: the caller gets a 503."""
    limit = timedelta(seconds=0.2)
    async with (
        RedisClient(own_server.url, timeout=limit) as client,
        connected_rates(own_server.url, client, redis_timeout=limit) as rates,
    ):
        await rates.take({"ns:a": OPEN})
        own_server.kill()

        with pytest.raises(StoreUnavailable):
            await rates.take({"ns:a": OPEN})
