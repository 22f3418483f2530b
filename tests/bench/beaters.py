"""Many clients that do nothing but beat: raw sockets and frames that were made beforehand.

Each sends the next beat when the last one is answered, one in a write as real clients do, so
that a gateway is as busy as it can be and nothing piles up. They are cheap, and limit nobody.
"""

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.figures import NotMeasuredError

from gpusession.api.frames import Ack, Beat, encode

ACK = encode(Ack(of="beat"))
WELCOME = b'"type":"welcome"'
PATIENCE = 60.0

AT_ONCE = 20
"""Clients that connect side by side: to connect costs a gateway a hundred beats."""


def client_frame(payload: bytes) -> bytes:
    """Wrap a short text in a WebSocket frame, masked with zeros as the standard allows."""
    return bytes((0x81, 0x80 | len(payload), 0, 0, 0, 0)) + payload


BEAT = client_frame(encode(Beat()))


class Tally:
    """What all clients together have heard, and whether they go on."""

    def __init__(self) -> None:
        self.acks = self.welcomes = self.sent = 0
        self.is_beating = False
        self.lost = ""


class Beater(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, tally: Tally, token: str) -> None:
        self._tally = tally
        self._token = token
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        """Ask for the upgrade; uvloop's transports are no asyncio.Transport."""
        self._transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            b"GET /v1/connect HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            + f"Sec-WebSocket-Key: {key}\r\nAuthorization: Bearer {self._token}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """Count answers, and beat again after one."""
        tally, text = self._tally, self._rest + data
        acks = text.count(ACK)
        tally.acks += acks
        if not acks and WELCOME in text:
            tally.welcomes += 1
            text = b""
        self._rest = text[1 - len(ACK) :]
        if acks:
            self.beat()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remember it: a benchmark that loses clients measures something else."""
        self._tally.lost = f"a client was cut off: {exc}; it last heard {self._rest!r}"

    def beat(self) -> None:
        """Send one, if the tally still wants any."""
        if self._tally.is_beating:
            self._tally.sent += 1
            self._transport.write(BEAT)

    def leave(self) -> None:
        """Hang up."""
        self._transport.abort()


@asynccontextmanager
async def beaters(port: int, tokens: Sequence[str]) -> AsyncIterator[tuple[Tally, list[Beater]]]:
    """Connect a client for each token; all of them are welcome when the block begins."""
    loop, tally = asyncio.get_running_loop(), Tally()
    crowd: list[Beater] = []
    try:
        for token in tokens:
            beater = Beater(tally, token)
            await loop.create_connection(lambda made=beater: made, "127.0.0.1", port)
            crowd.append(beater)
            at_least = len(crowd) if len(crowd) == len(tokens) else len(crowd) - AT_ONCE
            await _until(tally, lambda n=at_least: tally.welcomes >= n, "clients to be welcome")
        yield tally, crowd
    finally:
        for beater in crowd:
            beater.leave()


async def quiet(tally: Tally) -> None:
    """Stop the beating and wait until every beat has its answer."""
    tally.is_beating = False
    await _until(tally, lambda: tally.acks >= tally.sent, "the last answers")


async def _until(tally: Tally, happens, what: str) -> None:  # noqa: ANN001
    async with asyncio.timeout(PATIENCE):
        while not happens():
            if tally.lost:
                raise NotMeasuredError(f"waiting for {what}: {tally.lost}")
            await asyncio.sleep(0.02)
