"""Events of the gateways make keys ready, each with its priority; losing them costs time only."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from tests.support.cluster import running, until
from tests.support.redis_server import RedisServer

from gpusession.controller.queue import Priority
from gpusession.controller.stream import EventFollower
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.events import EventBus, EventKind


class Ear:
    """A follower, and what it made ready."""

    def __init__(self, client: RedisClient, listener: RedisClient) -> None:
        self.bus, self.client = EventBus(client), client
        self.heard: list[tuple[str, Priority]] = []
        self.follower = EventFollower(
            EventBus(listener),
            consumer="rig",
            suspect=lambda uid, priority: self.heard.append((uid, priority)),
        )

    async def hears(self, uid: str) -> None:
        """Tell of a close until it is heard."""
        async with asyncio.timeout(10):
            while (uid, Priority.EXPLICIT) not in self.heard:
                await self.bus.publish(EventKind.CLOSE, uid)
                await asyncio.sleep(0.1)


@pytest.fixture
async def ear(own_redis: RedisServer) -> AsyncIterator[Ear]:
    """Give a follower that runs and hears."""
    wait = timedelta(seconds=1)
    async with (
        RedisClient(own_redis.url, timeout=wait) as client,
        RedisClient(own_redis.url, timeout=wait, connections=1) as listener,
    ):
        ear = Ear(client, listener)
        async with running(ear.follower.run()):
            await ear.hears("begin")
            yield ear
        own_redis.resume()


@pytest.mark.parametrize(
    ("kind", "priority"),
    [
        (EventKind.CLOSE, Priority.EXPLICIT),
        (EventKind.RETURNED, Priority.EXPLICIT),
        (EventKind.REVOKED, Priority.REVOKED),
    ],
)
async def test_event_wakes_with_its_priority(ear: Ear, kind: EventKind, priority: Priority) -> None:
    """Whoever asked for it comes first."""
    await ear.bus.publish(kind, "s-1")

    await until(lambda: ("s-1", priority) in ear.heard, what="the event")


async def test_other_events_wake_nobody(ear: Ear) -> None:
    """They are our own, or the sweep sees to them once their grace is over."""
    for kind in set(EventKind) - {EventKind.CLOSE, EventKind.RETURNED, EventKind.REVOKED}:
        await ear.bus.publish(kind, "s-1")

    await ear.hears("end")

    assert "s-1" not in {uid for uid, _ in ear.heard}


async def test_lost_stream_is_followed_anew(ear: Ear) -> None:
    """Redis was wiped; what comes after that is heard."""
    await ear.client.call("DEL", keys.EVENTS)

    await ear.hears("later")


async def test_redis_that_was_away_is_followed_again(own_redis: RedisServer, ear: Ear) -> None:
    """After a pause, by itself."""
    own_redis.pause()
    await asyncio.sleep(1.5)
    own_redis.resume()

    await ear.hears("later")
