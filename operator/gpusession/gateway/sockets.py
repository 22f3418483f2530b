"""GET /v1/connect: from the upgrade over the hello to the end of a WebSocket.

Whoever is refused for being one too many has shown a good token all the same: that counts
as a beat, so a limit of ours never ends a Session.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import structlog
from aiohttp import WSMsgType, hdrs, web

from gpusession import tokens
from gpusession.api.frames import (
    MAX_FRAME,
    SESSION_HEADER,
    Error,
    Hello,
    RefusalReason,
    Welcome,
    decode_client_frame,
    encode,
)
from gpusession.errors import GpuSessionError, Limited, Refused, Retry
from gpusession.gateway import refusals, requests
from gpusession.gateway.admission import Admission
from gpusession.gateway.client_api import identify
from gpusession.gateway.clients import Clients
from gpusession.gateway.connection import Connection
from gpusession.gateway.departures import Departures
from gpusession.gateway.lease import GatewayLease
from gpusession.gateway.listener import extend
from gpusession.gateway.recount import tell_state
from gpusession.gateway.registry import ConnectionRegistry
from gpusession.gateway.rounds import Rounds
from gpusession.metrics import GATEWAY_CLOSES, GATEWAY_REFUSALS
from gpusession.store import clients as store
from gpusession.tokens import Presented

HANDSHAKE_SECONDS = 2.0
"""For the other side to answer a close; then the line is cut."""

Socket = web.WebSocketResponse[bool]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What a connection is given."""

    hello: timedelta
    silence: timedelta
    close_wait: timedelta


class Sockets:
    """Opens connections and sees each to its end."""

    def __init__(
        self,
        clients: Clients,
        *,
        registry: ConnectionRegistry,
        rounds: Rounds,
        admission: Admission,
        lease: GatewayLease,
        departures: Departures,
        times: Times,
    ) -> None:
        self._clients = clients
        self._registry = registry
        self._rounds = rounds
        self._admission = admission
        self._lease = lease
        self._departures = departures
        self._times = times
        self.is_draining = False

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/connect."""
        self._refuse_now()
        who = requests.presented(request) if hdrs.AUTHORIZATION in request.headers else None
        wanted = request.headers.get(SESSION_HEADER)
        try:
            with self._admission.place():
                if who is not None:
                    await self._admit(who, wanted)
                socket = await _upgraded(request)
                await self._serve(request, socket, who, wanted)
                return socket
        except Limited:
            if who is None:
                return await self._turn_away(request)
            await self._beat_all_the_same(who)
            raise

    async def _turn_away(self, request: web.Request) -> Socket:
        """Tell a browser that the house is full, once it has shown its token."""
        with self._admission.door() as refusal:
            socket = await _upgraded(request)
            try:
                who, _ = await self._hello(socket)
                await self._beat_all_the_same(who)
                await _refuse(socket, refusal)
            except _LeftEarlyError:
                GATEWAY_CLOSES.labels("client").inc()
            except Refused as error:
                await _refuse(socket, error)
            return socket

    async def _beat_all_the_same(self, who: Presented) -> None:
        with suppress(Retry):
            async with self._clients.in_time():
                await self._clients.beat(who)

    def _refuse_now(self) -> None:
        if self.is_draining:
            message = "this gateway goes: connect to another one"
            raise Limited(message, reason=RefusalReason.DRAINING, after=refusals.RETRY)
        self._lease.require()

    async def _admit(self, who: Presented, wanted: str | None) -> None:
        async with self._clients.in_time():
            look = await identify(self._clients, who, wanted)
            await self._admission.pass_session(look.ns, look.user)

    async def _serve(
        self, request: web.Request, socket: Socket, who: Presented | None, wanted: str | None
    ) -> None:
        """Work with an upgraded socket: from here on refusals are frames and close codes."""
        try:
            if who is None:
                who, wanted = await self._hello(socket)
                try:
                    await self._admit(who, wanted)
                except Limited:
                    await self._beat_all_the_same(who)
                    raise
            await self._live(request, socket, who)
        except _LeftEarlyError:
            GATEWAY_CLOSES.labels("client").inc()
        except GpuSessionError as error:
            await _refuse(socket, error)

    async def _hello(self, socket: Socket) -> tuple[Presented, str | None]:
        try:
            async with asyncio.timeout(self._times.hello.total_seconds()):
                message = await socket.receive()
        except TimeoutError as error:
            raise Refused("no hello came", reason=RefusalReason.TOKEN_UNKNOWN) from error
        if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
            raise _LeftEarlyError
        try:
            frame = decode_client_frame(message.data) if message.type is WSMsgType.TEXT else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            frame = None
        if not isinstance(frame, Hello):
            raise Refused("the first frame is a hello", reason=RefusalReason.BAD_REQUEST)
        who = tokens.parse(frame.token)
        if who is None:
            raise Refused("this is no Session token", reason=RefusalReason.TOKEN_UNKNOWN)
        return who, frame.session

    async def _live(self, request: web.Request, socket: Socket, who: Presented) -> None:
        if request.transport is None:
            raise _LeftEarlyError
        extend(request.transport, self._times.silence)
        connection = Connection(
            socket,
            request.transport,
            who,
            clients=self._clients,
            close_wait=self._times.close_wait,
        )
        self._registry.add(connection)  # first: an event that comes from now on must find it
        left = False
        try:
            facts = await self._count(connection)
            await tell_state(connection, facts)
            # What an event has told by now is newer, or as new events will say.
            told = connection.heartbeat_period
            period = facts.per if told is None else told
            ping = self._rounds.add(connection, period)
            await connection.run(_welcome(who, facts, period, ping))
            left = connection.is_evidence and not self.is_draining
        finally:
            self._registry.remove(connection)
            connection.left = left
            self._departures.note(connection)
            await connection.finish()

    async def _count(self, connection: Connection) -> store.Welcome:
        # First: Redis may count it and the answer be lost, and then its end must be told.
        gateway = connection.counted_at = self._lease.id
        answer, welcome = await self._clients.connect(connection.who, gateway, connection.number)
        if welcome is None and connection.counted_at == gateway:
            connection.counted_at = None
        self._clients.require(connection.who, answer)
        if welcome is None:
            raise AssertionError("a good answer without its facts")
        self._refuse_now()  # it may have come in while all others were being closed
        return welcome


class _LeftEarlyError(Exception):
    """The client went before it was greeted."""


def _welcome(who: Presented, facts: store.Welcome, period: timedelta, ping: timedelta) -> Welcome:
    return Welcome(
        namespace=facts.ns,
        name=facts.name,
        uid=who.uid,
        heartbeat_seconds=period.total_seconds(),
        ping_seconds=ping.total_seconds(),
        token_expires_in_seconds=facts.token_lasts.total_seconds(),
    )


async def _upgraded(request: web.Request) -> Socket:
    """Change over to WebSocket; raises Refused for a request that asks for no such thing."""
    if hdrs.SEC_WEBSOCKET_PROTOCOL in request.headers:
        # aiohttp would log the names, and some clients carry tokens in them.
        message = "no subprotocol is spoken here: send the token in a header or a hello"
        raise Refused(message, reason=RefusalReason.BAD_REQUEST)
    socket: Socket = web.WebSocketResponse(
        timeout=HANDSHAKE_SECONDS,
        autoping=False,
        compress=False,
        max_msg_size=MAX_FRAME,
        decode_text=False,
    )
    if not socket.can_prepare(request):
        raise Refused("this is a WebSocket: upgrade", reason=RefusalReason.BAD_REQUEST)
    await socket.prepare(request)
    return socket


async def _refuse(socket: Socket, error: GpuSessionError) -> None:
    reason = refusals.reason_of(error)
    code = refusals.close_code_of(reason)
    GATEWAY_REFUSALS.labels(reason).inc()
    GATEWAY_CLOSES.labels(str(code.value)).inc()
    frame = Error(reason=reason, message=str(error))
    with suppress(ConnectionError, RuntimeError):
        await socket.send_frame(encode(frame), WSMsgType.TEXT)
        await socket.close(code=code, message=reason.encode(), drain=False)
