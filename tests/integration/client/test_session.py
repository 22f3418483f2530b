"""What a caller does with a Session, and what it hears of it."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.client_rig import QUICK, FakeGateway, until

from gpusession.client import (
    Ended,
    GatewayUnreachable,
    Left,
    PendingDestroy,
    Restored,
    SessionEnded,
    connect,
)

ANNOUNCED = {"reason": "Idle", "deadline": "2026-11-24T12:00:00Z", "cancellable": True}
PENDING = PendingDestroy("Idle", datetime(2026, 11, 24, 12, tzinfo=UTC), cancellable=True)


async def test_activity_carries_its_busy_lease(gateway: FakeGateway) -> None:
    """The idle timeout counts from its end."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        await session.activity(busy=timedelta(minutes=10))

    assert gateway.seen("frame", type="activity")[0]["busySeconds"] == pytest.approx(600, abs=5)


@pytest.mark.parametrize("busy", [timedelta(days=2), timedelta(seconds=-1)])
async def test_lease_that_no_gateway_takes_is_refused(
    gateway: FakeGateway, busy: timedelta
) -> None:
    """It would cost the connection, again and again."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        with pytest.raises(ValueError, match="at most 1 day"):
            await session.activity(busy=busy)


async def test_activity_without_a_gateway_is_said_and_not_lost(gateway: FakeGateway) -> None:
    """The caller hears that nobody recorded it; the next connection tells it nonetheless."""
    gateway.rules(heartbeatSeconds=0)  # with beats it would come along with the next one
    hasty = replace(QUICK, ack_timeout=timedelta(seconds=0.3))
    async with connect(gateway.url, token="token-0", timing=hasty) as session:
        gateway.rules(status=503)
        gateway.hang_up(1013)
        await until(lambda: not session.is_connected, "the loss to be seen")
        with pytest.raises(GatewayUnreachable, match="HTTP 503"):
            await session.activity(busy=timedelta(minutes=5))
        gateway.rules(status=0)
        await until(lambda: gateway.count("frame", type="activity") == 1, "the activity")

    assert gateway.seen("frame", type="activity")[0]["busySeconds"] > 280


async def test_activity_with_an_expired_token_reaches_the_next_connection(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    """The error is about the token; the frame is told again with another one."""
    file = tmp_path / "token"
    file.write_text("token-0")
    refused = {"activity": "TokenExpired"}
    gateway.rules(refusedFrames=refused, closesFor={"TokenExpired": 4401}, tokens=["token-0", "b"])
    async with connect(gateway.url, token_file=file, timing=QUICK) as session:
        reporting = asyncio.create_task(session.activity())
        await until(lambda: gateway.count("frame", type="activity"), "the refused activity")
        gateway.rules(refusedFrames={})
        file.write_text("b")
        await reporting

    assert gateway.seen("frame", type="activity")[-1]["token"] == "b"


async def test_refused_activity_is_said_at_once(gateway: FakeGateway) -> None:
    """A gateway that limits rates answers; its connection stays."""
    gateway.rules(refusedFrames={"activity": "TooManyRequests"})
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        with pytest.raises(GatewayUnreachable, match="TooManyRequests"):
            await session.activity()

    assert gateway.count("connect") == 1


async def test_busy_block_renews_its_lease(gateway: FakeGateway) -> None:
    """Three times within its length, and no more once the block is left."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        async with session.busy(timedelta(seconds=0.6)):
            await until(lambda: gateway.count("frame", type="activity") >= 4, "renewals")
        await asyncio.sleep(0.6)  # one may be on its way still
        count = gateway.count("frame", type="activity")
        await asyncio.sleep(0.6)

    assert gateway.count("frame", type="activity") == count


async def test_busy_block_does_not_wait_for_a_gateway_for_long(gateway: FakeGateway) -> None:
    """The caller's work matters more than the report of it."""
    hasty = replace(QUICK, ack_timeout=timedelta(seconds=0.2))
    async with connect(gateway.url, token="token-0", timing=hasty) as session:
        gateway.rules(status=503)
        gateway.hang_up(1013)
        await until(lambda: not session.is_connected, "the loss to be seen")
        async with session.busy():
            gateway.rules(status=0)
            await until(lambda: gateway.count("frame", type="activity") >= 1, "the lease")


async def test_close_ends_the_session(gateway: FakeGateway) -> None:
    """It is recorded when close returns; the client then knows why it ended."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        await session.close()
        assert await session.ended() == "ExplicitClose"
        with pytest.raises(SessionEnded):
            await session.activity()

    assert gateway.count("frame", type="close") == 1


async def test_close_looks_for_a_gateway_at_once(gateway: FakeGateway) -> None:
    """A long pause between two attempts is cut short for it."""
    gateway.rules(heartbeatSeconds=0)  # with beats no pause would be long
    patient = replace(QUICK, first_pause=timedelta(minutes=5), longest_pause=timedelta(minutes=5))
    async with connect(gateway.url, token="token-0", timing=patient) as session:
        gateway.hang_up(1011)
        await until(lambda: not session.is_connected, "the loss to be seen")
        await session.close()

    assert gateway.count("frame", type="close") == 1


async def test_close_that_nobody_records_is_said(gateway: FakeGateway) -> None:
    """No close without an ack."""
    hasty = replace(QUICK, close_patience=timedelta(seconds=0.5))
    gateway.rules(unacknowledged=["close"])
    async with connect(gateway.url, token="token-0", timing=hasty) as session:
        with pytest.raises(GatewayUnreachable):
            await session.close()


async def test_close_of_a_session_that_has_ended_is_no_error(gateway: FakeGateway) -> None:
    """What the caller wanted is so."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        gateway.hang_up(4410, "Idle")
        await session.ended()
        await session.close()

        assert await session.ended() == "Idle"


@pytest.mark.parametrize("code", [1000, 4410])
async def test_close_of_a_session_that_ends_meanwhile_is_no_error(
    gateway: FakeGateway, code: int
) -> None:
    """The gateway refuses the close, since there is nothing left to close."""
    gateway.rules(refusedFrames={"close": "SessionEnding"}, closesFor={"SessionEnding": code})
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        await session.close()

        assert await session.ended() in {"ExplicitClose", "SessionEnding"}


async def test_leaving_the_block_is_a_disconnect(gateway: FakeGateway) -> None:
    """The Session's own grace runs; nothing was closed."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        pass
    await until(lambda: gateway.count("closed", code=1000) == 1, "the goodbye")

    assert gateway.count("frame", type="close") == 0
    with pytest.raises(Left):
        await session.activity()


async def test_events_tell_the_course_of_an_end(gateway: FakeGateway) -> None:
    """Announced, cancelled, announced again, ended; then the iterator ends."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        events = session.events()
        for frame in ({"type": "pendingDestroy", **ANNOUNCED}, {"type": "restored"}):
            gateway.say(**frame)
        assert [await anext(events), await anext(events)] == [PENDING, Restored()]
        assert session.pending_destroy is None

        gateway.say(type="pendingDestroy", **ANNOUNCED)
        gateway.hang_up(4410)
        rest = [event async for event in events]

        assert rest[0] == PENDING
        assert isinstance(rest[1], Ended)
        assert rest[1].cause.reason == "Idle"


async def test_new_connection_shows_whether_the_end_still_holds(gateway: FakeGateway) -> None:
    """The cancellation may have been said while nobody listened."""
    gateway.rules(heartbeatSeconds=0)
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        gateway.say(type="pendingDestroy", **ANNOUNCED)
        await until(lambda: session.pending_destroy, "the announcement")
        gateway.hang_up(1012)
        await until(lambda: session.pending_destroy is None, "its end")


async def test_new_connection_repeats_an_end_that_holds(gateway: FakeGateway) -> None:
    """Nothing is called restored that is not."""
    gateway.rules(pending=ANNOUNCED)
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        await until(lambda: session.pending_destroy, "the announcement")
        gateway.hang_up(1012)
        await until(lambda: gateway.count("connect") == 2, "a second connection")
        await session.activity()

        assert session.pending_destroy == PENDING


async def test_frames_of_a_newer_gateway_are_skipped(gateway: FakeGateway) -> None:
    """An unknown frame is a sign of life and nothing else."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        gateway.say(type="fromTheFuture", value=1)
        await session.activity()

    assert gateway.count("connect") == 1


async def test_facts_of_the_welcome_are_at_hand(gateway: FakeGateway) -> None:
    """A log line of the caller may name its Session."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        assert session.facts is not None
        assert (session.facts.namespace, session.facts.name) == ("default", "chat")
