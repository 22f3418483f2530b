"""What a server may have lost, as real servers show it, and what it means for unknown tokens."""

import asyncio
from datetime import timedelta

import pytest
from tests.support.records import (
    FAR,
    LIFETIME,
    OTHER_TOKEN,
    TOKEN,
    UID,
    bend,
    liveness,
    now_ms,
    open_record,
    open_with_token,
    read_record,
    watch,
)
from tests.support.redis_server import RedisServer

from gpusession.api.session import Reason, RecordState
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import TOKEN_LIFE, Answer, ClientStore
from gpusession.store.identities import IdentityStore
from gpusession.store.pulse import Pulse
from gpusession.store.sessions import Claim, Proof, SessionStore

MINUTE = timedelta(minutes=1)
LONG_AGO = 60_000
"""Milliseconds; longer than any token here was verified ago."""


async def found(client: RedisClient) -> int:
    """Read when the last loss was found."""
    return int(await client.call("HGET", keys.TICK, "lost"))


async def heal(client: RedisClient, token: str) -> Answer:
    """Put a token back, as verified half a minute ago."""
    return await ClientStore(client).heal(
        UID, token, expires_in=TOKEN_LIFE, verified_ago=timedelta(seconds=30)
    )


async def rewind(server: RedisServer, client: RedisClient) -> None:
    """Mint a token, and have the server come back as it was before that."""
    await client.call("SAVE")
    await ClientStore(client).mint(UID, OTHER_TOKEN, TOKEN_LIFE)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


async def test_knock_where_nothing_was_lost_leaves_no_trace(client: RedisClient) -> None:
    """Whoever sends made-up tokens is refused for good, and keeps no Session alive."""
    await watch(client)
    await open_record(client)
    before = await client.call("HGETALL", keys.record(UID))

    assert not await ClientStore(client).knock(UID)
    assert await client.call("HGETALL", keys.record(UID)) == before


@pytest.mark.parametrize(("ago", "expected"), [(0, True), (85_000, True), (90_000, False)])
async def test_token_may_have_been_lost_with_its_record(
    client: RedisClient, ago: int, expected: bool
) -> None:
    """For a while after the record was rebuilt: not every gateway knows every token."""
    await watch(client)
    await open_record(client, rebuilt=True)
    await bend(client, lost=await now_ms(client) - ago)

    assert await ClientStore(client).knock(UID) is expected
    assert ((await read_record(client)).doubt is not None) is expected


@pytest.mark.parametrize(("ago", "expected"), [(0, True), (85_000, True), (90_000, False)])
async def test_token_may_have_been_lost_with_an_older_state_of_the_server(
    client: RedisClient, ago: int, expected: bool
) -> None:
    """There the record is as old as it says, and lacks a token all the same."""
    await watch(client, lost=await now_ms(client) - ago)
    await open_record(client)

    assert await ClientStore(client).knock(UID) is expected
    assert ((await read_record(client)).doubt is not None) is expected


async def test_a_client_that_beats_seldom_is_waited_for(client: RedisClient) -> None:
    """It comes once within its threshold, which may be longer than the usual time."""
    await watch(client, lost=await now_ms(client) - 595_000)
    watched = liveness(heartbeat_threshold=timedelta(minutes=10))
    await open_record(client, liveness=watched)

    assert await ClientStore(client).knock(UID)


async def test_knock_of_a_doubt_wins_over_an_older_look(client: RedisClient) -> None:
    """A claim that was judged before it is refused, as after any sign of life."""
    await open_record(client)
    await watch(client, lost=await now_ms(client))
    before = (await read_record(client)).n
    proof = (await Pulse(client).tick()).proof

    assert await ClientStore(client).knock(UID)
    assert await claim(client, before, proof) is Claim.RETURNED


async def claim(client: RedisClient, counter: int, proof: Proof) -> Claim:
    """Claim by a look at that counter."""
    return await SessionStore(client).claim(
        UID,
        to=RecordState.RELEASING,
        why=Reason.HEARTBEAT_LOST,
        grace=timedelta(),
        counter=counter,
        watch=proof,
    )


@pytest.mark.parametrize("damage", [{}, {"n": "x"}])
async def test_knock_without_a_whole_record_proves_nothing(
    client: RedisClient, damage: dict[str, str]
) -> None:
    """Nobody is refused for good by it, and nothing is written by guessing uids."""
    await bend(client, **damage)
    before = await client.call("HGETALL", keys.record(UID))

    assert await ClientStore(client).knock(UID)
    assert await client.call("HGETALL", keys.record(UID)) == before


async def test_record_that_is_there_was_not_lost(client: RedisClient) -> None:
    """A repair that finds it loses no token."""
    await watch(client)
    await open_record(client)
    await open_record(client, rebuilt=True)

    assert not await ClientStore(client).knock(UID)


async def test_a_first_look_at_an_empty_server_finds_no_loss(client: RedisClient) -> None:
    """A new installation refuses made-up tokens from the start."""
    await Pulse(client).tick()
    await open_record(client)

    assert await found(client) == 0
    assert not await ClientStore(client).knock(UID)


async def test_a_first_look_at_a_server_with_records_finds_a_loss(client: RedisClient) -> None:
    """Who has emptied what, and what came back since, nobody knows."""
    await open_record(client)
    await Pulse(client).tick()

    assert await ClientStore(client).knock(UID)


async def test_another_looker_at_the_same_server_finds_no_loss(client: RedisClient) -> None:
    """A new leader costs the tokens nothing: process and history are those of the last look."""
    await Pulse(client).tick()
    await open_record(client)

    await Pulse(client).tick()

    assert await found(client) == 0


async def test_an_emptied_server_is_a_loss_for_who_has_looked_at_it(client: RedisClient) -> None:
    """Even before anything is there again."""
    pulse = Pulse(client)
    await pulse.tick()
    await client.call("FLUSHALL")
    before = await now_ms(client)

    await pulse.tick()
    await pulse.tick()

    assert before <= await found(client) <= await now_ms(client)


async def test_a_token_that_is_newer_than_the_copy_is_put_back(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """By whom it was verified with, before the controller has looked and after it."""
    pulse = Pulse(own_client)
    await pulse.tick()
    await open_record(own_client)
    await bend(own_client, made=await now_ms(own_client) - LONG_AGO)
    await rewind(own_server, own_client)

    assert await heal(own_client, OTHER_TOKEN) is Answer.OK

    await pulse.tick()
    assert await heal(own_client, TOKEN) is Answer.OK


async def test_a_token_that_is_newer_than_the_copy_is_not_refused_for_good(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """Its client comes by a gateway that does not know it, before the controller looks or after."""
    pulse = Pulse(own_client)
    await pulse.tick()
    await open_record(own_client)
    await rewind(own_server, own_client)

    assert await ClientStore(own_client).knock(UID)

    await pulse.tick()
    await pulse.tick()
    assert await ClientStore(own_client).knock(UID)


async def test_a_token_that_is_newer_than_the_replica_is_put_back(
    own_client: RedisClient, redis_servers: dict[str, RedisServer]
) -> None:
    """A replica that has taken over has another history than the one that was looked at."""
    await Pulse(own_client).tick()
    await open_record(own_client)
    await bend(own_client, made=await now_ms(own_client) - LONG_AGO)
    assert await heal(own_client, TOKEN) is Answer.TOKEN_UNKNOWN
    primary = next(iter(redis_servers.values()))

    await own_client.call("REPLICAOF", "127.0.0.1", primary.port)
    await own_client.call("REPLICAOF", "NO", "ONE")

    assert await heal(own_client, TOKEN) is Answer.OK


async def test_a_loss_in_the_future_is_one_of_now(client: RedisClient) -> None:
    """The clock was moved back since: the time for tokens begins anew, and ends."""
    await watch(client, lost=FAR)
    await open_with_token(client)

    assert await ClientStore(client).knock(UID)
    await Pulse(client).tick()

    assert await found(client) <= await now_ms(client)


async def test_a_loss_that_cannot_be_read_is_one_of_now(client: RedisClient) -> None:
    """And the next look writes one that can."""
    await watch(client)
    await client.call("HSET", keys.TICK, "lost", "x")
    await open_record(client, lifetime=LIFETIME + MINUTE)

    assert await ClientStore(client).knock(UID)
    await Pulse(client).tick()

    assert await found(client) > 0


async def test_a_server_is_whole_once_all_records_are_there_again(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """From a loss on it is not, also before the controller has looked, until that is rebuilt."""
    pulse, sessions = Pulse(own_client), SessionStore(own_client)
    identities = IdentityStore(own_client)
    seen = [await identities.is_rebuilt()]
    await pulse.tick()
    await sessions.note_rebuilt(await sessions.loss() or 0)
    seen.append(await identities.is_rebuilt())
    await open_record(own_client)
    await rewind(own_server, own_client)
    seen.append(await identities.is_rebuilt())
    await pulse.tick()
    seen.append(await identities.is_rebuilt())
    await sessions.note_rebuilt(0)
    seen.append(await identities.is_rebuilt())
    await sessions.note_rebuilt(await sessions.loss() or 0)
    seen.append(await identities.is_rebuilt())

    assert seen == [False, True, False, False, False, True]


async def test_a_loss_without_a_tick_has_no_name(client: RedisClient) -> None:
    """Nor one that cannot be read: nothing can be said to be rebuilt after it."""
    nameless = await SessionStore(client).loss()
    await client.call("HSET", keys.TICK, "lost", "x")

    assert (nameless, await SessionStore(client).loss()) == (None, None)
