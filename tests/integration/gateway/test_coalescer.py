"""Beats gathered into few calls, into a real Redis."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from tests.support.gateway_rig import Desk, GatewayProcess, StartGateway
from tests.support.records import bend, open_record, read_record
from tests.support.redis_server import RedisServer

from gpusession.errors import StoreUnavailable
from gpusession.gateway.coalescer import BeatCoalescer
from gpusession.store.client import RedisClient
from gpusession.store.clients import TOKEN_LIFE, Answer, ClientStore
from gpusession.tokens import Presented

PATIENCE = timedelta(seconds=1)


@asynccontextmanager
async def coalescer(redis: RedisClient, *, most: int = 1000) -> AsyncIterator[BeatCoalescer]:
    """Give one that runs."""
    made = BeatCoalescer(
        ClientStore(redis),
        gateway=lambda: "gw",
        tick=timedelta(milliseconds=10),
        batch=200,
        most=most,
        patience=PATIENCE,
    )
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.wait({running})


@pytest.fixture
async def redis(own_redis: RedisServer) -> AsyncIterator[RedisClient]:
    """Give a client with little patience."""
    async with RedisClient(own_redis.url, timeout=timedelta(seconds=0.3)) as client:
        yield client


async def _known(redis: RedisClient, number: int) -> Presented:
    who = Presented(f"uid-{number}", f"digest-{number}")
    await open_record(redis, uid=who.uid, name=f"s-{number}")
    await ClientStore(redis).mint(*who, TOKEN_LIFE)
    return who


async def _calls(redis: RedisClient) -> int:
    stats = (await redis.call("INFO", "commandstats")).decode()
    return sum(
        int(line.partition("calls=")[2].partition(",")[0])
        for line in stats.splitlines()
        if line.startswith(("cmdstat_eval:", "cmdstat_evalsha:"))
    )


async def test_beats_of_many_go_in_one_call_for_200(redis: RedisClient) -> None:
    """Three hundred clients at once are two calls."""
    known = [await _known(redis, number) for number in range(300)]
    async with coalescer(redis) as beats:
        await beats.beat(known[0])  # the script is known from here on
        before = await _calls(redis)
        answers = await asyncio.gather(*map(beats.beat, known))

    assert set(answers) == {Answer.OK}
    assert await _calls(redis) - before == 2


async def test_beats_of_one_client_that_wait_together_are_one(redis: RedisClient) -> None:
    """However fast it sends; each of them is answered."""
    who = await _known(redis, 1)
    before = (await read_record(redis, who.uid)).n
    async with coalescer(redis) as beats:
        answers = await asyncio.gather(*(beats.beat(who) for _ in range(50)))

    assert answers == [Answer.OK] * 50
    assert (await read_record(redis, who.uid)).n == before + 1


async def test_each_beat_gets_its_own_answer(redis: RedisClient) -> None:
    """One that is refused refuses nobody beside it."""
    good, revoked = await _known(redis, 1), await _known(redis, 2)
    await bend(redis, revoked.uid, rev=1)
    async with coalescer(redis) as beats:
        answers = await asyncio.gather(
            beats.beat(revoked), beats.beat(good), beats.beat(Presented(good.uid, "other"))
        )

    assert answers == [Answer.REVOKED, Answer.OK, Answer.TOKEN_UNKNOWN]


async def test_while_redis_hangs_only_so_many_wait(
    own_redis: RedisServer, redis: RedisClient
) -> None:
    """The rest is told at once; and a client that waits already waits once."""
    known = [await _known(redis, number) for number in range(3)]
    async with coalescer(redis, most=2) as beats:
        own_redis.pause()
        waiting = [asyncio.ensure_future(beats.beat(who)) for who in (*known[:2], known[0])]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="2 beats wait"):
            await beats.beat(known[2])

        done, _ = await asyncio.wait(waiting, timeout=5)
        assert {type(one.exception()) for one in done} == {StoreUnavailable}
        own_redis.resume()
        assert await beats.beat(known[2]) is Answer.OK


async def test_nobody_waits_longer_than_their_patience(
    own_redis: RedisServer, patient: RedisClient
) -> None:
    """Whatever the time limit of a call is; the beat itself is not given up."""
    who = await _known(patient, 1)
    before = (await read_record(patient, who.uid)).n
    async with coalescer(patient) as beats:
        own_redis.pause()
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await beats.beat(who)
        took = time.monotonic() - started
        own_redis.resume()
        while (await read_record(patient, who.uid)).n == before:
            await asyncio.sleep(0.01)

    assert took < PATIENCE.total_seconds() * 1.5


@pytest.fixture
async def patient(own_redis: RedisServer) -> AsyncIterator[RedisClient]:
    """Give a client that waits longer than any caller."""
    async with RedisClient(own_redis.url, timeout=timedelta(seconds=10)) as client:
        yield client


async def test_a_caller_that_gives_up_takes_no_beat_back(redis: RedisClient) -> None:
    """Its client has spoken; somebody else may wait for the same beat."""
    who = await _known(redis, 1)
    async with coalescer(redis) as beats:
        impatient = asyncio.ensure_future(beats.beat(who))
        stays = asyncio.ensure_future(beats.beat(who))
        await asyncio.sleep(0)
        impatient.cancel()

        assert await stays is Answer.OK


async def test_http_callers_are_told_within_two_seconds(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """503 and a time to come again, whatever Redis does."""
    front: Desk = await start_gateway(own_redis)
    known = await front.known()
    own_redis.pause()
    started = time.monotonic()

    reply = await front.call("POST", "/v1/heartbeat", known)

    assert reply.reason == (503, "StoreUnavailable")
    assert "Retry-After" in reply.headers
    assert time.monotonic() - started < 3
    assert isinstance(front.gateway, GatewayProcess)
