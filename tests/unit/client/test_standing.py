"""What is known of a Session, and who is told of changes."""

import asyncio
from datetime import UTC, datetime

import pytest

from gpusession.api import frames
from gpusession.client.errors import GatewayUnreachable, Left, SessionEnded
from gpusession.client.standing import Ended, PendingDestroy, Restored, Standing

ANNOUNCED = frames.PendingDestroy(reason="Idle", deadline="2026-11-24T12:00:00Z", cancellable=True)
PENDING = PendingDestroy("Idle", datetime(2026, 11, 24, 12, tzinfo=UTC), cancellable=True)
ENDED = SessionEnded("Idle")


@pytest.fixture
def standing() -> Standing:
    """Give that of a Session of which nothing has been heard."""
    return Standing()


async def test_announced_end_is_known_until_it_is_cancelled(standing: Standing) -> None:
    """A caller may ask at any time."""
    standing.heard(ANNOUNCED)
    assert standing.pending == PENDING

    standing.heard(frames.Restored())
    assert standing.pending is None


async def test_last_welcome_counts(standing: Standing) -> None:
    """Pauses between two connections go by the heartbeat as it is now."""
    for seconds in (30.0, 5.0):
        standing.heard(
            frames.Welcome(
                namespace="ns",
                name="chat",
                uid="u",
                heartbeat_seconds=seconds,
                ping_seconds=seconds,
                token_expires_in_seconds=1800.0,
            )
        )

    assert standing.facts is not None
    assert standing.facts.heartbeat_seconds == 5


async def test_events_begin_with_how_it_stands(standing: Standing) -> None:
    """Who listens late misses nothing that still holds."""
    standing.heard(ANNOUNCED)
    standing.finish(ENDED)

    assert [event async for event in standing.events()] == [PENDING, Ended(ENDED)]


async def test_every_listener_hears_every_change(standing: Standing) -> None:
    """Two listeners do not take events from each other."""

    async def listen() -> list[object]:
        return [event async for event in standing.events()]

    listening = [asyncio.create_task(listen()) for _ in range(2)]
    await asyncio.sleep(0)
    standing.heard(ANNOUNCED)
    standing.heard(frames.Restored())
    standing.finish(ENDED)

    assert [await task for task in listening] == [[PENDING, Restored(), Ended(ENDED)]] * 2


async def test_ack_on_a_new_connection_proves_that_an_end_was_cancelled(
    standing: Standing,
) -> None:
    """A gateway that takes a beat would have announced the end before."""
    standing.heard(ANNOUNCED)
    standing.unproven = True

    standing.heard(frames.Ack(of="beat"))

    assert standing.pending is None


async def test_ack_on_the_old_connection_proves_nothing(standing: Standing) -> None:
    """A beat is recorded while the Session ends, too."""
    standing.heard(ANNOUNCED)

    standing.heard(frames.Ack(of="beat"))

    assert standing.pending == PENDING


async def test_last_word_is_said_once(standing: Standing) -> None:
    """Leaving the block after the end does not hide why it ended."""
    standing.finish(ENDED)
    standing.finish(Left())

    assert await standing.finished() is ENDED


async def test_connection_is_waited_for_until_the_moment(standing: Standing) -> None:
    """No wait is without end."""
    with pytest.raises(GatewayUnreachable):
        await standing.open_connection(asyncio.get_running_loop().time())


async def test_who_waits_for_a_connection_hears_of_the_end(standing: Standing) -> None:
    """There will be none any more."""
    waiting = asyncio.create_task(standing.open_connection(asyncio.get_running_loop().time() + 60))
    await asyncio.sleep(0)
    standing.finish(ENDED)

    with pytest.raises(SessionEnded):
        await waiting
