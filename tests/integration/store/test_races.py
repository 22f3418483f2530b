"""Two who want the opposite of one record: exactly one wins, whatever the order."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from tests.support.records import (
    GATEWAY,
    TOKEN,
    UID,
    bend,
    liveness,
    news,
    open_with_token,
    read_record,
)
from tests.support.redis_server import RedisServer

from gpusession.api.session import Reason, RecordState
from gpusession.store.client import RedisClient
from gpusession.store.clients import Answer, ClientStore
from gpusession.store.deadlines import DeadlineStore
from gpusession.store.gateways import GatewayRegistry
from gpusession.store.pulse import Pulse
from gpusession.store.sessions import Claim, Proof, SessionStore

ROUNDS = 200
GRACE = timedelta(seconds=20)
LOST = Reason.HEARTBEAT_LOST


@pytest.fixture
async def other(server: RedisServer) -> AsyncIterator[RedisClient]:
    """Give a client of another process."""
    async with RedisClient(server.url, timeout=timedelta(seconds=5)) as client:
        yield client


async def beat(client: RedisClient) -> Answer:
    """Beat, after a moment."""
    await asyncio.sleep(random.random() / 1000)  # noqa: S311
    return (await ClientStore(client).beats([(UID, TOKEN)], GATEWAY))[0]


async def claim(
    client: RedisClient, to: RecordState, counter: int | None, *, watch: Proof | None = None
) -> Claim:
    """Claim, after a moment."""
    await asyncio.sleep(random.random() / 1000)  # noqa: S311
    watch = watch or (await Pulse(client).tick()).proof
    return await SessionStore(client).claim(
        UID, to=to, why=LOST, grace=GRACE, counter=counter, watch=watch
    )


async def round_of(
    client: RedisClient, other: RedisClient, state: str, counter: int | None
) -> tuple[Answer, Claim, RecordState]:
    """Let a beat and a claim of the release run at once; give both answers, and the end."""
    await client.call("FLUSHALL")
    await open_with_token(client)
    await bend(client, state=state, why=LOST)
    answer, won = await asyncio.gather(beat(client), claim(other, RecordState.RELEASING, counter))
    return answer, won, (await read_record(client)).state


@pytest.mark.parametrize(("state", "heard"), [("active", Answer.OK), ("pending", Answer.RETURNED)])
async def test_of_beat_and_claim_exactly_one_wins(
    client: RedisClient, other: RedisClient, state: str, heard: Answer
) -> None:
    """Either the client is in and the claim is off, or the client is told of the end."""
    outcomes = {await round_of(client, other, state, 0) for _ in range(ROUNDS)}

    assert outcomes <= {
        (heard, Claim.RETURNED, RecordState.ACTIVE),
        (Answer.ENDING, Claim.WON, RecordState.RELEASING),
    }


async def test_of_two_claims_both_are_the_same(client: RedisClient, other: RedisClient) -> None:
    """A claim that is repeated, by whoever, is one claim and one event."""
    await open_with_token(client)
    watch = (await Pulse(client).tick()).proof

    won = await asyncio.gather(
        *(claim(each, RecordState.RELEASING, 0, watch=watch) for each in (client, other) * 10)
    )

    assert set(won) == {Claim.WON}
    assert await news(client) == [("ending", UID)]


async def test_of_two_last_disconnects_one_is_the_last(
    client: RedisClient, other: RedisClient
) -> None:
    """Two sockets at two gateways end at once: the disconnect is seen, once."""
    for _ in range(ROUNDS // 4):
        await client.call("FLUSHALL")
        await open_with_token(client)
        await GatewayRegistry(client).announce("gw-b", timedelta(seconds=10))
        for gateway in (GATEWAY, "gw-b"):
            await ClientStore(client).connect(UID, TOKEN, gateway, "1")
        await asyncio.gather(
            ClientStore(client).disconnect(UID, GATEWAY, "1", evidence=True),
            ClientStore(other).disconnect(UID, "gw-b", "1", evidence=True),
        )

        assert await news(client) == [("disconnected", UID)]


async def test_of_two_sweeps_each_due_session_has_one(
    client: RedisClient, other: RedisClient
) -> None:
    """Two controllers that ask at once get nothing twice."""
    for number in range(50):
        await open_with_token(client, uid=str(number), name=str(number))
        await bend(client, str(number), close=1)

    pages = await asyncio.gather(*(DeadlineStore(each).due(5) for each in (client, other) * 5))

    taken = [due.uid for page in pages for due in page]
    assert sorted(taken) == sorted(map(str, range(50)))


async def test_beat_between_look_and_claim_is_seen(client: RedisClient) -> None:
    """The controller looked, the client beat, the controller claims what it saw: returned."""
    await open_with_token(client)
    before = await read_record(client)
    await beat(client)

    assert await claim(client, RecordState.PENDING, before.n) is Claim.RETURNED


async def test_loss_between_look_and_claim_is_seen(client: RedisClient) -> None:
    """FLUSHALL, and a record made anew: no count of the lost record claims the new one."""
    await open_with_token(client)
    before = await read_record(client)
    await client.call("FLUSHALL")
    lost = await claim(client, RecordState.RELEASING, before.n)
    await SessionStore(client).open(
        uid=UID,
        namespace="ns",
        name="a",
        user=None,
        node="n1",
        lifetime=GRACE,
        liveness=liveness(),
    )

    assert lost is Claim.MISSING
    assert await claim(client, RecordState.RELEASING, before.n) is Claim.RETURNED
