"""A client's verbs against a real Redis, with tokens that Redis has lost."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from tests.support.records import now_ms, open_record, read_record, watch
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy

from gpusession import tokens
from gpusession.errors import Refused, StoreUnavailable
from gpusession.gateway.clients import Clients
from gpusession.gateway.coalescer import BeatCoalescer
from gpusession.gateway.lease import GatewayLease
from gpusession.gateway.verified import VerifiedTokens
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import TOKEN_LIFE, Answer, ClientStore
from gpusession.store.gateways import GatewayRegistry
from gpusession.store.identities import IdentityStore
from gpusession.tokens import Presented

UID = "0f6ac3ae-90a4-4f21-9b3c-0a6b6f2d6a11"
WHO = Presented(UID, tokens.mint(UID).digest)


@pytest.fixture
async def redis(own_redis: RedisServer) -> AsyncIterator[RedisClient]:
    """Give a client with a record and a token in it."""
    async with RedisClient(own_redis.url, timeout=timedelta(seconds=5)) as client:
        await watch(client)
        await open_record(client, uid=UID)
        await ClientStore(client).mint(*WHO, TOKEN_LIFE)
        yield client


@asynccontextmanager
async def gateway(
    redis: RedisClient, *, gone: frozenset[str] = frozenset()
) -> AsyncIterator[Clients]:
    """Give the verbs of one gateway."""
    store = ClientStore(redis)
    coalescer = BeatCoalescer(
        store,
        gateway=lambda: "gw",
        tick=timedelta(milliseconds=1),
        batch=200,
        most=10,
        patience=timedelta(seconds=0.5),
    )
    running = asyncio.create_task(coalescer.run())
    yield Clients(
        store,
        identities=IdentityStore(redis),
        coalescer=coalescer,
        verified=VerifiedTokens(most=10, life=TOKEN_LIFE, monotonic=time.monotonic),
        lease=GatewayLease(GatewayRegistry(redis), name="gw", ttl=timedelta(seconds=10)),
        is_gone=gone.__contains__,
        answer_timeout=timedelta(seconds=0.5),
    )
    running.cancel()
    await asyncio.wait({running})


@pytest.mark.parametrize("verb", ["look", "beat", "activity", "connect", "close", "refresh"])
async def test_every_verb_heals_a_token_that_was_verified_here(
    redis: RedisClient, verb: str
) -> None:
    """Whatever a client says first after Redis lost its data."""
    more = {"activity": (timedelta(0),), "connect": ("gw", "1")}.get(verb, ())
    async with gateway(redis) as clients:
        await clients.beat(WHO)
        await redis.call("FLUSHALL")
        await asyncio.sleep(0.01)
        await open_record(redis, uid=UID)

        await getattr(clients, verb)(WHO, *more)

        assert (await IdentityStore(redis).look(*WHO)).answer is Answer.OK


async def test_a_clock_that_jumps_takes_no_token_that_was_verified_here(
    redis: RedisClient,
) -> None:
    """By this gateway's own clock its half hour is far from over."""
    async with gateway(redis) as clients:
        await clients.beat(WHO)
        await redis.call("HSET", keys.tokens(UID), WHO.digest, 5)

        assert await clients.beat(WHO) is Answer.OK


async def test_a_rotated_token_is_not_put_back_after_its_overlap(redis: RedisClient) -> None:
    """Another one stands in its place."""
    async with gateway(redis) as clients:
        await clients.beat(WHO)
        await redis.call("HSET", keys.tokens(UID), WHO.digest, -5)

        assert await clients.beat(WHO) is Answer.TOKEN_EXPIRED


async def test_a_heal_that_is_slow_heals_all_the_same(
    own_redis: RedisServer, redis: RedisClient
) -> None:
    """The record was rebuilt at once after the beat, and the call for the token hangs."""
    async with gateway(redis) as clients:
        await clients.beat(WHO)
        await redis.call("FLUSHALL")
        await open_record(redis, uid=UID)
        await asyncio.sleep(0.01)
        own_redis.pause()
        late = asyncio.ensure_future(clients.close(WHO))
        await asyncio.sleep(0.2)
        own_redis.resume()

        assert await late is Answer.OK


async def test_a_token_that_was_never_known_is_refused_for_good(redis: RedisClient) -> None:
    """Anybody can make one up; nothing was lost, and it keeps nobody alive."""
    stranger = Presented(UID, tokens.mint(UID).digest)
    async with gateway(redis) as clients:
        assert await clients.beat(stranger) is Answer.TOKEN_UNKNOWN
        assert (await read_record(redis, UID)).doubt is None


async def test_a_token_that_another_gateway_may_know_is_not_refused_for_good(
    redis: RedisClient,
) -> None:
    """A client that has no other would give up, and its Session would end."""
    async with gateway(redis) as clients:
        await redis.call("FLUSHALL")
        await open_record(redis, uid=UID, rebuilt=True)

        with pytest.raises(StoreUnavailable, match="another gateway"):
            await clients.beat(WHO)
        assert (await read_record(redis, UID)).doubt is not None


async def test_a_token_that_an_older_copy_lacks_is_healed_or_not_refused_for_good(
    redis: RedisClient,
) -> None:
    """The record is there, and as old as it says; what was verified here comes back."""
    stranger = Presented(UID, tokens.mint(UID).digest)
    async with gateway(redis) as clients:
        await asyncio.sleep(0.6)  # beyond the answer timeout, which counts on top
        await clients.beat(WHO)
        await redis.call("DEL", keys.tokens(UID))
        await watch(redis, lost=await now_ms(redis))

        assert await clients.beat(WHO) is Answer.OK
        with pytest.raises(StoreUnavailable, match="another gateway"):
            await clients.beat(stranger)


async def test_a_knock_without_an_answer_refuses_nobody_for_good(redis: RedisClient) -> None:
    """Redis may have lost data: only its own word says that it has not."""
    async with gateway(redis) as clients:
        await redis.call("FLUSHALL")
        await open_record(redis, uid=UID, rebuilt=True)
        await redis.call("ACL", "SETUSER", "default", "-hset")  # what a knock writes with

        with pytest.raises(StoreUnavailable, match="no usable answer"):
            await clients.beat(WHO)


async def test_a_token_that_the_same_record_lost_stays_lost(redis: RedisClient) -> None:
    """It was taken away on purpose, and memory must not give it back."""
    async with gateway(redis) as clients:
        await asyncio.sleep(0.6)  # beyond the answer timeout, which counts on top
        await clients.beat(WHO)
        await redis.call("HDEL", f"gs:t:{UID}", WHO.digest)

        assert await clients.beat(WHO) is Answer.TOKEN_UNKNOWN


async def test_a_refreshed_token_is_healed_and_the_old_one_only_within_its_minute(
    redis: RedisClient,
) -> None:
    """The memory knows which of the two goes on."""
    async with gateway(redis) as clients:
        await clients.beat(WHO)
        _, fresh, _ = await clients.refresh(WHO)
        await redis.call("FLUSHALL")
        await asyncio.sleep(0.01)
        await open_record(redis, uid=UID)

        assert await clients.beat(Presented(UID, fresh.digest)) is Answer.OK
        assert await clients.beat(WHO) is Answer.OK
        assert int(await redis.call("HGET", f"gs:t:{UID}", WHO.digest)) < 0  # never slides


async def test_a_record_that_is_gone_for_good_is_not_missing(redis: RedisClient) -> None:
    """A client that would wait for it for ever learns the end instead."""
    async with gateway(redis, gone=frozenset({UID})) as clients:
        with pytest.raises(Refused) as refused:
            clients.require(WHO, Answer.MISSING)

    assert refused.value.reason == "SessionEnding"


async def test_no_verb_waits_longer_than_the_answer_timeout(
    own_redis: RedisServer, redis: RedisClient
) -> None:
    """Although Redis' own limit is longer."""
    async with gateway(redis) as clients:
        own_redis.pause()
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await clients.close(WHO)

    assert time.monotonic() - started < 2


async def test_all_steps_of_a_verb_share_the_answer_timeout(
    own_redis: RedisServer, redis: RedisClient
) -> None:
    """Each is quick enough by itself: an unknown token is looked up, and then knocked with."""
    await watch(redis)
    stranger = Presented(UID, tokens.mint(UID).digest)
    with TcpProxy(own_redis.port) as link:
        url = f"redis://127.0.0.1:{link.port}/0"
        slow = RedisClient(url, timeout=timedelta(seconds=5), connections=1)
        async with slow, gateway(slow) as clients:
            assert (await clients.look(stranger)).answer is Answer.TOKEN_UNKNOWN
            link.delay_seconds = 0.15

            with pytest.raises(StoreUnavailable, match=r"no answer within 0\.5 s"):
                await clients.look(stranger)
