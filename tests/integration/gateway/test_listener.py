"""Slow and silent clients at a real gateway process: nothing is held open for them."""

import asyncio
import socket
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.gateway_rig import Desk, StartGateway
from tests.support.pki import CertificateAuthority
from tests.support.redis_server import RedisServer

READ, IDLE = 1.0, 0.3
HEAD = b"POST /v1/activity HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def module_settings() -> dict[str, object]:
    """Shorten the times, and keep their order."""
    return {
        "read_timeout": timedelta(seconds=READ),
        "idle_timeout": timedelta(seconds=IDLE),
        "write_timeout": timedelta(seconds=0.5),
    }


async def _exchange(front: Desk, *parts: bytes, pause: float = 0.0) -> tuple[bytes, float]:
    """Send parts with a pause between, read until the end; give what came and how long it took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.gateway.port)
    started = time.monotonic()
    with suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause)
    answer = await _rest(reader)
    writer.transport.abort()
    return answer, time.monotonic() - started


async def _rest(reader: asyncio.StreamReader, *, pause: float = 0.0) -> bytes:
    answer = b""
    with suppress(ConnectionError):
        while chunk := await reader.read(1024):
            answer += chunk
            await asyncio.sleep(pause)
    return answer


async def test_who_says_nothing_is_cut_off(front: Desk) -> None:
    """A connection without a request, after the read timeout."""
    answer, took = await _exchange(front)

    assert answer == b""
    assert READ * 0.9 < took < READ + 1


async def test_headers_that_drip_are_cut_off(front: Desk) -> None:
    """Each byte in time, the whole too late: the classic way to hold a server."""
    parts = [HEAD, *(b"X-%d: y\r\n" % number for number in range(6))]

    answer, took = await _exchange(front, *parts, pause=0.2)

    assert answer == b""
    assert took < READ + 2


async def test_first_headers_may_take_longer_than_a_kept_connection_may_idle(front: Desk) -> None:
    """A lost packet costs a mobile client more than half a second."""
    known = await front.known()
    end = f"Authorization: Bearer {known.token}\r\nContent-Length: 0\r\n\r\n".encode()

    answer, _ = await _exchange(front, HEAD, end, pause=IDLE * 2)

    assert answer.startswith(b"HTTP/1.1 200")


async def test_a_body_that_does_not_come_is_408(front: Desk) -> None:
    """And the connection goes with it."""
    known = await front.known()
    head = HEAD + f"Authorization: Bearer {known.token}\r\nContent-Length: 9\r\n\r\n".encode()

    answer, took = await _exchange(front, head, b"{")

    assert answer.startswith(b"HTTP/1.1 408")
    assert took < READ + 3


async def test_a_kept_connection_that_idles_is_closed(front: Desk) -> None:
    """After the answer it may wait for a next request, not long."""
    known = await front.known()
    request = HEAD + f"Authorization: Bearer {known.token}\r\nContent-Length: 0\r\n\r\n".encode()

    answer, took = await _exchange(front, request)

    assert b"200 OK" in answer
    assert took < IDLE + 1


async def test_what_is_no_http_gets_a_short_answer(front: Desk) -> None:
    """A scanner, or TLS at the plain port."""
    answer, _ = await _exchange(front, b"\x16\x03\x01\x00\xa5\x01\x00\x00\r\n\r\n")

    assert b" 400 Bad Request\r\n" in answer
    assert b"no HTTP request" in answer


async def test_headers_beyond_the_cap_are_refused(front: Desk) -> None:
    """8 KiB a line: a Kubernetes token takes one or two."""
    answer, _ = await _exchange(front, HEAD + b"X: " + b"y" * 9000 + b"\r\n\r\n")

    assert b" 400 Bad Request\r\n" in answer


async def test_who_takes_answers_too_slowly_is_cut_off(front: Desk) -> None:
    """A sip each 50 ms: the kernel sees progress for ever, the gateway does not wait for it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.gateway.port, limit=1024)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)

    async with asyncio.timeout(15):
        await _rest(reader, pause=0.05)  # all of them would take 50 s

    writer.transport.abort()


async def test_tls_is_spoken_where_a_certificate_is_given(
    own_redis: RedisServer, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """For clusters without an ingress."""
    authority = CertificateAuthority(tmp_path / "ca")
    cert, key = authority.issue("gateway", sans=["localhost"])
    front = await start_gateway(own_redis, tls_cert_file=cert, tls_key_file=key)
    url = f"https://localhost:{front.gateway.port}/v1/heartbeat"
    curl = ["curl", "-sS", "--cacert", str(authority.ca_file), "-X", "POST", url]
    known = await front.known()

    called = await asyncio.create_subprocess_exec(
        *curl, "-H", f"Authorization: Bearer {known.token}", stdout=asyncio.subprocess.PIPE
    )

    assert b'"phase":"Active"' in (await called.communicate())[0]
