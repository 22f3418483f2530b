"""The event stream in real servers, and what becomes of it when it is lost."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from tests.support.records import UID, open_record
from tests.support.redis_server import RedisServer

from gpusession.errors import StoreUnavailable
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.events import GROUP, Event, EventBus, EventKind
from gpusession.store.sessions import SessionStore

CLOSE, GONE = EventKind.CLOSE, EventKind.GONE


@pytest.fixture
async def bus(client: RedisClient) -> EventBus:
    """Give a bus to publish on, its stream empty."""
    return EventBus(client)


@pytest.fixture
async def ear(server: RedisServer) -> AsyncIterator[EventBus]:
    """Give a bus to listen on: a client of its own, with short waits."""
    async with RedisClient(server.url, timeout=timedelta(seconds=1)) as client:
        yield EventBus(client)


def listen(events: AsyncIterator[Event]) -> "asyncio.Task[Event]":
    """Wait for one event."""
    return asyncio.create_task(anext(events))  # type: ignore[arg-type]


async def ready(client: RedisClient) -> None:
    """Wait until somebody listens, in vain."""
    while b"cmd=xread" not in (await client.call("CLIENT", "LIST")):
        await asyncio.sleep(0.01)


async def test_event_comes_with_all_it_says(bus: EventBus, ear: EventBus) -> None:
    """Its kind, its Session, its fields and its place."""
    await bus.publish(EventKind.PENDING, "u", why="Idle", until="5")

    event = await anext(ear.follow("0-0"))

    assert (event.kind, event.uid) == (EventKind.PENDING, "u")
    assert event.fields == {"why": "Idle", "until": "5"}
    assert event.id.endswith("-0")


async def test_follower_begins_with_what_is_new(
    client: RedisClient, bus: EventBus, ear: EventBus
) -> None:
    """A gateway that starts is not told of the past, and misses nothing between two waits."""
    await bus.publish(CLOSE, "old")
    next_event = listen(ear.follow())
    await ready(client)
    await asyncio.sleep(0.7)

    await bus.publish(CLOSE, "new")

    assert (await next_event).uid == "new"


async def test_follower_goes_on_where_it_was(bus: EventBus, ear: EventBus) -> None:
    """After a fault it misses nothing."""
    for uid in "abc":
        await bus.publish(CLOSE, uid)
    first = await anext(ear.follow("0-0"))

    rest = ear.follow(first.id)

    assert [(await anext(rest)).uid, (await anext(rest)).uid] == ["b", "c"]


async def test_events_reach_the_group_and_every_follower(bus: EventBus, ear: EventBus) -> None:
    """The controller takes one copy, each gateway its own."""
    consumer = ear.consume("leader")
    waits = listen(consumer)
    await asyncio.sleep(0.1)
    await bus.publish(GONE, "u")

    followers = [ear.follow("0-0"), ear.follow("0-0")]

    heard = [await waits, *[await anext(follower) for follower in followers]]
    assert [event.uid for event in heard] == ["u", "u", "u"]


async def test_what_was_left_undone_goes_to_the_next_leader(bus: EventBus, ear: EventBus) -> None:
    """An event that a dead consumer had taken comes again, before what is new."""
    dying = ear.consume("first")
    waits = listen(dying)
    await asyncio.sleep(0.1)
    await bus.publish(CLOSE, "taken")
    await waits
    await bus.publish(CLOSE, "new")

    after = ear.consume("second")

    assert [(await anext(after)).uid, (await anext(after)).uid] == ["taken", "new"]


async def test_done_events_do_not_come_again(
    client: RedisClient, bus: EventBus, ear: EventBus
) -> None:
    """Asking for the next one says that those before are done."""
    consumer = ear.consume("first")
    waits = listen(consumer)
    await asyncio.sleep(0.1)
    await bus.publish(CLOSE, "a")
    await waits
    waits = listen(consumer)
    await asyncio.sleep(0.2)
    await bus.publish(CLOSE, "b")
    await waits

    pending = await client.call("XPENDING", keys.EVENTS, GROUP)
    assert pending[0] == 1


async def fill(client: RedisClient) -> None:
    """Write more events than are kept."""
    many = "for i=1,12000 do redis.call('XADD',KEYS[1],'*','kind','close','uid','u') end"
    await client.call("EVAL", many, 1, keys.EVENTS)


@pytest.mark.parametrize("loss", [("FLUSHALL",), ("XGROUP", "DESTROY", keys.EVENTS, GROUP)])
async def test_lost_group_is_made_anew(
    client: RedisClient, bus: EventBus, ear: EventBus, loss: tuple[str, ...]
) -> None:
    """The consumer goes on by itself with what comes next."""
    waits = listen(ear.consume("leader"))
    await ready(client)
    await client.call(*loss)
    while not await client.call("EXISTS", keys.EVENTS) or not await client.call(
        "XINFO", "GROUPS", keys.EVENTS
    ):
        await asyncio.sleep(0.01)

    await bus.publish(CLOSE, "u")

    assert (await waits).uid == "u"


class Forgetful(RedisClient):
    """A client of a server on which no group is ever found."""

    async def call(self, *command: bytes | str | int) -> object:
        """Lose the group before each read."""
        if command[0] == "XREADGROUP":
            self.reads = getattr(self, "reads", 0) + 1
            await super().call("DEL", keys.EVENTS)
        return await super().call(*command)


async def test_group_that_cannot_be_kept_is_an_error(own_server: RedisServer) -> None:
    """The caller paces what does not come right; the bus does not spin."""
    async with Forgetful(own_server.url, timeout=timedelta(seconds=1)) as client:
        with pytest.raises(StoreUnavailable, match="NOGROUP"):
            await anext(EventBus(client).consume("leader"))

        assert client.reads == 2


@pytest.mark.parametrize("copy", [[], ["old", "older"]])
async def test_follower_goes_on_with_what_is_new_in_a_stream_that_is_behind(
    bus: EventBus, ear: EventBus, copy: list[str]
) -> None:
    """It was emptied, or is an older copy, whose events were told already; its clock is behind."""
    for uid in copy:
        await bus.publish(CLOSE, uid)
    waits = listen(ear.follow("99999999999999-0"))
    await asyncio.sleep(1)

    while not waits.done():
        await bus.publish(CLOSE, "new")
        await asyncio.sleep(0.1)

    assert (await waits).uid == "new"


async def test_unknown_kind_is_passed_over(
    client: RedisClient, bus: EventBus, ear: EventBus
) -> None:
    """A later version may tell more than this one knows."""
    await client.call("XADD", keys.EVENTS, "*", "kind", "sang", "uid", "u")
    await client.call("XADD", keys.EVENTS, "*", "kind", "close", "what", "no uid")
    await bus.publish(CLOSE, "u")

    assert (await anext(ear.follow("0-0"))).kind is CLOSE


async def test_stream_is_bounded(client: RedisClient, bus: EventBus) -> None:
    """Nobody reads the events of last week."""
    await fill(client)

    await bus.publish(CLOSE, "u")

    assert await client.call("XLEN", keys.EVENTS) < 10_200


async def test_scripts_keep_the_stream_bounded_too(client: RedisClient) -> None:
    """Most events come from them."""
    await open_record(client)
    await fill(client)

    await SessionStore(client).revoke(UID)

    assert await client.call("XLEN", keys.EVENTS) < 10_200


async def test_stopped_server_is_told(own_server: RedisServer, own_client: RedisClient) -> None:
    """A listener that hears nothing because Redis is gone must know it."""
    own_server.stop()
    bus = EventBus(own_client)

    for events in (bus.follow(), bus.consume("leader")):
        with pytest.raises(StoreUnavailable):
            await anext(events)
