"""One WebSocket's frames and its end, at a real gateway process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest
from tests.support.gateway_rig import Desk, Known, eventually

from gpusession.api.frames import MAX_FRAME
from gpusession.api.session import RecordState


@pytest.fixture(scope="module")
def module_settings() -> dict[str, object]:
    """Wait little for a controller that is not there, and little for other beats."""
    return {"close_wait": timedelta(seconds=0.3), "beat_tick": timedelta(milliseconds=1)}


@pytest.mark.parametrize("kind", ["beat", "activity"])
async def test_a_frame_is_acknowledged_once_redis_has_it(front: Desk, kind: str) -> None:
    """A client that got its ack may rely on it."""
    known = await front.known()

    async with front.socket(known) as line:
        before = (await front.record(known)).n
        assert await line.ask(kind) == {"type": "ack", "of": kind}
        assert (await front.record(known)).n == before + 1


async def test_an_activity_may_announce_work(front: Desk) -> None:
    """Half an hour of computing without another word."""
    known = await front.known()

    async with front.socket(known) as line:
        await line.ask("activity", busySeconds=1800)

    assert (await front.record(known)).busy is not None


@pytest.mark.parametrize("kind", ["ping", "pong"])
async def test_ping_and_pong_are_beats(front: Desk, kind: str) -> None:
    """Browsers answer pings by themselves."""
    known = await front.known()

    async with front.socket(known) as line:
        before = (await front.record(known)).n
        await getattr(line.raw, kind)(b"x")
        await eventually(lambda: _is_beyond(front, known, before), what="the beat")


async def _is_beyond(front: Desk, known: Known, n: int) -> bool:
    return (await front.record(known)).n > n


async def test_a_refresh_gives_a_token_that_the_connection_goes_on_with(front: Desk) -> None:
    """The old one dies within a minute, the connection does not."""
    known = await front.known()

    async with front.socket(known) as line:
        before = (await front.record(known)).n
        answer = await line.ask("refresh")
        fresh = Known(known.uid, known.name, answer["token"])
        await front.clients.mint(known.uid, known.digest, timedelta(milliseconds=1))

        assert (answer["type"], answer["expiresInSeconds"]) == (
            "token",
            pytest.approx(1800, abs=5),
        )
        await eventually(lambda: _is_beyond(front, known, before), what="the beat that it is")
        assert (await line.ask("beat"))["type"] == "ack"
        assert (await front.call("POST", "/v1/heartbeat", fresh)).status == 200


async def test_a_close_that_nobody_acts_on_ends_as_done(front: Desk) -> None:
    """The wish is safe; the client need not wait for the controller."""
    known = await front.known()

    async with front.socket(known) as line:
        assert await line.ask("close") == {"type": "ack", "of": "close"}
        assert await line.closed() == 1000
    assert (await front.record(known)).close


async def test_a_close_that_is_acted_on_ends_as_done_too(front: Desk) -> None:
    """1000, not 4410: it is what the client wished."""
    known = await front.known()

    async with front.socket(known) as line:
        await line.ask("close")
        await front.sessions.mark(known.uid, RecordState.RELEASING)
        assert await line.closed() == 1000


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        '{"type":"shout"}',
        '{"type":"hello","token":"x"}',
        '{"type":"activity","busySeconds":-1}',
    ],
    ids=["noise", "empty", "unknown", "second hello", "negative"],
)
async def test_a_frame_that_is_not_understood_closes(front: Desk, text: str) -> None:
    """4400 after a sentence that says why."""
    async with front.socket(await front.known()) as line:
        await line.raw.send_str(text)

        assert (await line.next())["reason"] == "BadRequest"
        assert await line.closed() == 4400


async def test_frames_are_text(front: Desk) -> None:
    """One encoding is enough."""
    async with front.socket(await front.known()) as line:
        await line.raw.send_bytes(b'{"type":"beat"}')

        assert (await line.next())["reason"] == "BadRequest"
        assert await line.closed() == 4400


async def test_a_frame_beyond_the_cap_closes(front: Desk) -> None:
    """1009, and never counts as a client that has gone."""
    known = await front.known()

    async with front.socket(known) as line:
        await line.raw.send_str(" " * (MAX_FRAME + 1))
        assert await line.closed() == 1009
    await asyncio.sleep(0.2)

    record = await front.record(known)
    assert (record.dc, dict(record.connections)) == (None, {})


async def test_compression_is_not_spoken(front: Desk) -> None:
    """64 KiB a connection are more than all frames of a day."""
    async with front.socket(await front.known(), compress=15) as line:
        assert not line.raw.compress
        assert (await line.ask("beat"))["type"] == "ack"


async def test_a_revoked_token_closes_a_connection_that_missed_the_news(front: Desk) -> None:
    """Its next beat says it, whatever became of the event."""
    known = await front.known()

    async with front.socket(known) as line:
        await front.redis.call("HSET", f"gs:s:{known.uid}", "rev", 1)
        assert (await line.ask("beat"))["reason"] == "TokenRevoked"
        assert await line.closed() == 4409


async def test_a_missing_record_closes_nothing(front: Desk) -> None:
    """The client is told and stays; once the record is back its beats count again."""
    known = await front.known()

    async with front.socket(known) as line:
        await front.redis.call("UNLINK", f"gs:s:{known.uid}", f"gs:t:{known.uid}")
        assert (await line.ask("beat"))["reason"] == "RecordMissing"
        await front.reopen(known)
        assert (await line.ask("beat"))["type"] == "ack"


async def test_a_client_that_reads_nothing_is_cut_off_and_not_counted_as_gone(
    front: Desk,
) -> None:
    """It sends, so it lives; what it does not read must not fill our memory."""
    known = await front.known()
    name = 'gpusession_gateway_closes_total{code="slow"}'
    before = await front.metric(name)

    async with _deaf(front, known) as writer:
        while await front.metric(name) == before:
            writer.write(PING * 100)
            with suppress(ConnectionError):
                await writer.drain()
        await eventually(lambda: _is_uncounted(front, known), what="the end in Redis")

    assert (await front.record(known)).dc is None


async def _is_uncounted(front: Desk, known: Known) -> bool:
    return not (await front.record(known)).connections


PING = bytes([0x89, 0x80 | 125]) + bytes(4) + b"x" * 125


@asynccontextmanager
async def _deaf(front: Desk, known: Known) -> AsyncIterator[asyncio.StreamWriter]:
    """Connect with a small buffer for what comes in, and read nothing of it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(("127.0.0.1", front.gateway.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1)
    upgrade = (
        "GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {known.token}\r\n\r\n"
    )
    writer.write(upgrade.encode())
    yield writer
    writer.transport.abort()
    del reader
