"""What the controller does reaches the connections of a real gateway process."""

import asyncio
from datetime import timedelta

import pytest
from tests.support.gateway_rig import Desk, StartGateway
from tests.support.records import expiry
from tests.support.redis_server import RedisServer

from gpusession.api.session import RecordState
from gpusession.store import keys
from gpusession.store.events import EventBus, EventKind


@pytest.mark.parametrize(
    ("why", "cancellable"),
    [("HeartbeatLost", True), ("Disconnected", True), ("Idle", True), ("Deleted", False)],
)
async def test_an_end_that_begins_is_told_with_reason_and_time(
    front: Desk, why: str, *, cancellable: bool
) -> None:
    """And whether a client can call it off."""
    known = await front.known()
    async with front.socket(known) as line:
        await front.pending(known, why)
        told = await line.next()

    until = (await front.record(known)).until
    assert until is not None
    assert told == {
        "type": "pendingDestroy",
        "reason": why,
        "deadline": until.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "cancellable": cancellable,
    }


@pytest.mark.parametrize("by", ["client", "controller"])
async def test_an_end_that_is_called_off_is_told_once(front: Desk, by: str) -> None:
    """By a beat of any client, or by the controller."""
    known = await front.known()
    async with front.socket(known) as line:
        await front.pending(known, "HeartbeatLost")
        await line.next()
        if by == "client":
            await front.call("POST", "/v1/heartbeat", known)
        else:
            await front.sessions.reopen(known.uid)

        assert await line.next() == {"type": "restored"}
        assert await line.ask("beat") == {"type": "ack", "of": "beat"}


@pytest.mark.parametrize("how", ["releasing", "gone", "forgotten"])
async def test_an_end_closes_the_connection(front: Desk, how: str) -> None:
    """4410: a new connection is of no use."""
    known = await front.known()
    async with front.socket(known) as line:
        if how == "forgotten":
            await front.sessions.forget(known.uid)
        else:
            await front.sessions.mark(known.uid, RecordState(how))

        assert await line.closed() == 4410


async def test_a_heartbeat_that_changes_is_told_in_a_second_welcome(front: Desk) -> None:
    """Once, with all that a client plans by; who comes later gets it in the first."""
    known = await front.known()
    changed = {
        "heartbeat_period": timedelta(seconds=5),
        "heartbeat_threshold": timedelta(seconds=9),
    }
    async with front.socket(known) as line:
        for _ in range(2):
            await front.reopen(known, **changed)
        told = await line.next()

        assert (await line.ask("beat"))["type"] == "ack"
    expires = told.pop("tokenExpiresInSeconds")
    assert expires == pytest.approx(line.welcome.pop("tokenExpiresInSeconds"), abs=15)
    assert told == line.welcome | {"heartbeatSeconds": 5, "pingSeconds": 5}
    async with front.socket(known) as later:
        assert later.welcome["heartbeatSeconds"] == 5


async def test_a_heartbeat_that_nobody_understands_changes_nothing(front: Desk) -> None:
    """A damaged event costs no connection."""
    known = await front.known()
    async with front.socket(known) as line:
        for fields in ({}, {"per": "-1"}, {"per": "soon"}):
            await EventBus(front.redis).publish(EventKind.HEARTBEAT, known.uid, **fields)
        await front.pending(known, "Idle")

        assert (await line.next())["type"] == "pendingDestroy"


async def test_a_revocation_closes_every_connection_of_the_session(front: Desk) -> None:
    """4409, within a second, whatever token each came with."""
    known, other = await front.known(), await front.known()
    async with front.socket(known) as one, front.socket(known) as two, front.socket(other) as rest:
        async with asyncio.timeout(1):
            await front.clients.revoke(known.uid)
            codes = [await one.closed(), await two.closed()]

        assert codes == [4409, 4409]
        assert (await rest.ask("beat"))["type"] == "ack"


async def test_news_of_a_session_that_nobody_here_has_is_nothing(front: Desk) -> None:
    """The stream is everybody's."""
    known = await front.known()
    bus = EventBus(front.redis)
    for kind in EventKind:
        await bus.publish(kind, "somebody-else", why="Idle", until="no number")

    async with front.socket(known) as line:
        assert (await line.ask("beat"))["type"] == "ack"


async def test_what_happened_while_the_stream_was_broken_off_comes_after(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """It goes on from the last event that came."""
    front = await start_gateway(own_redis)
    known = await front.known()
    async with front.socket(known) as line:
        own_redis.pause()
        await asyncio.sleep(3)
        own_redis.resume()
        await front.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await front.pending(known, "Idle")

        told = [await line.next() for _ in range(1)]
        assert told[0]["type"] == "pendingDestroy"


async def test_two_gateways_both_bring_the_news(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Clients of one Session may sit at different ones."""
    one, two = await start_gateway(own_redis), await start_gateway(own_redis)
    known = await one.known()
    async with one.socket(known) as here, two.socket(known) as there:
        await one.pending(known, "Idle", grace=timedelta(minutes=1).total_seconds())

        assert [(await line.next())["type"] for line in (here, there)] == ["pendingDestroy"] * 2


async def test_an_older_copy_of_redis_tells_nobody_of_an_end_that_was_called_off(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """Its stream still holds that end, and would close a living client for good."""
    front = await start_gateway(own_redis)
    known = await front.known()
    await front.sessions.mark(known.uid, RecordState.RELEASING)
    await front.sessions.reopen(known.uid)
    async with front.socket(known) as line:
        await front.redis.call("SAVE")
        await EventBus(front.redis).publish(EventKind.CLOSE, "somebody-else")
        assert (await line.ask("beat"))["type"] == "ack"
        await asyncio.sleep(1)
        own_redis.kill()
        own_redis.start()
        await asyncio.sleep(4)

        assert (await line.ask("beat"))["type"] == "ack"


async def test_a_token_that_was_rotated_at_another_gateway_is_not_put_back_for_good(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """The one that had verified it hears of the rotation."""
    one, two = await start_gateway(own_redis), await start_gateway(own_redis)
    known, witness = await one.known(), await one.known()
    await one.call("POST", "/v1/heartbeat", known)
    async with one.socket(witness) as line:
        assert (await two.call("POST", "/v1/refresh", known)).status == 200
        await one.pending(witness, "Idle")
        await line.next()  # so it has heard what was told before that, too
    await one.redis.call("DEL", keys.tokens(known.uid))

    assert (await one.call("POST", "/v1/heartbeat", known)).status == 200
    assert await expiry(one.redis, known.digest, known.uid) < 0  # it never slides
