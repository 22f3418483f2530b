"""Listens for clients, with a time limit on everything that a slow one could hold open.

aiohttp knows one such time, for a kept connection without a next request, and lets it also
bound the headers of the first one. Half a second is right for the former and too little
for the latter: a lost packet costs a second.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Any

from aiohttp import web
from typing_extensions import override

from gpusession.api.frames import Refusal, RefusalReason, encode
from gpusession.metrics import GATEWAY_REFUSALS

BACKLOG = 1024
"""Connections that the kernel keeps until we accept: clients of a lost gateway come at once."""

LINGER_SECONDS = 1.0
"""How long the rest of a refused body is read, so that its sender gets to read the answer."""


SEND_BUFFER = 32 * 1024
"""Bytes that the kernel keeps for a client that does not read; it would take 4 MB else."""


class _ClientProtocol(web.RequestHandler):
    """One connection; its first request has longer to come than any later one."""

    __slots__ = ("_first_seconds",)

    def __init__(self, *args: Any, first: timedelta, **options: Any) -> None:
        super().__init__(*args, **options)
        self._first_seconds = first.total_seconds()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        # The timer that aiohttp has just set fires early, sees this and waits on.
        self._next_keepalive_close_time = self._loop.time() + self._first_seconds
        _limit_unacknowledged(transport, self._first_seconds)

    @override
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP without a word of it: aiohttp's own line would quote it."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        GATEWAY_REFUSALS.labels(RefusalReason.BAD_REQUEST).inc()
        words = Refusal(reason=RefusalReason.BAD_REQUEST, message="this is no HTTP request")
        response = web.Response(status=status, body=encode(words), content_type="application/json")
        response.force_close()
        return response


def extend(transport: asyncio.BaseTransport, limit: timedelta) -> None:
    """Let a connection that became a WebSocket live through a bad network for so long."""
    _limit_unacknowledged(transport, limit.total_seconds())


@asynccontextmanager
async def listening(
    app: web.Application,
    *,
    host: str,
    port: int,
    read_timeout: timedelta,
    idle_timeout: timedelta,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Serve while the block lasts, then let the requests in hand be answered; gives the port."""
    loop = asyncio.get_running_loop()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=read_timeout.total_seconds())
    await runner.setup()
    protocol = partial(
        _ClientProtocol,
        runner.server,
        loop=loop,
        first=read_timeout,
        keepalive_timeout=idle_timeout.total_seconds(),
        lingering_time=LINGER_SECONDS,
        access_log=None,
    )
    handshake = None if tls is None else read_timeout.total_seconds()
    server = await loop.create_server(
        protocol, host, port, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=handshake
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await runner.cleanup()


def _limit_unacknowledged(transport: asyncio.BaseTransport, seconds: float) -> None:
    """Have the kernel give a connection up whose other side takes nothing for so long."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
