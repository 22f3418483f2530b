"""The event stream in real servers."""

from gpusession.store.client import RedisClient
from gpusession.store.events import EventBus, EventKind


async def test_follower_hears_what_is_published(client: RedisClient) -> None:
    """An event comes with its kind, its Session and its fields."""
    bus = EventBus(client)
    await bus.publish(EventKind.PENDING, "u", why="Idle")

    event = await anext(bus.follow("0-0"))

    assert (event.kind, event.uid, event.fields) == (EventKind.PENDING, "u", {"why": "Idle"})
