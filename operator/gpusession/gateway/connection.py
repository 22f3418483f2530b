"""One client's WebSocket: its frames in, our frames out, and how it ends.

Frames are taken one at a time, so a client that sends faster than Redis takes is held back
by TCP. Nothing that is missing closes a connection; only an answer that refuses does.
"""

import asyncio
import itertools
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec
import structlog
from aiohttp import WSMsgType, web
from aiohttp.http import WSMessage, WSMessageTextBytes

from gpusession.api.frames import (
    Ack,
    Activity,
    Beat,
    Close,
    CloseCode,
    Error,
    GatewayFrame,
    Hello,
    NewToken,
    PendingDestroy,
    Refresh,
    RefusalReason,
    Restored,
    Welcome,
    decode_client_frame,
    encode,
)
from gpusession.api.session import Reason
from gpusession.errors import GpuSessionError, Refused, Retry
from gpusession.gateway import refusals
from gpusession.gateway.clients import Clients
from gpusession.metrics import GATEWAY_CLOSES, GATEWAY_FRAMES, GATEWAY_REFUSALS
from gpusession.store.clients import Answer
from gpusession.tokens import Presented

Message = WSMessage | WSMessageTextBytes

MAX_UNREAD = 32 * 1024
"""Bytes that a client may leave unread: 300 of our frames. aiohttp itself waits at 64 KiB."""

CANCELLABLE = frozenset({Reason.HEARTBEAT_LOST, Reason.DISCONNECTED, Reason.IDLE})
"""Ends that a client calls off by coming back."""

_FRAMES = {
    kind: GATEWAY_FRAMES.labels(kind.__name__.lower())
    for kind in (Hello, Beat, Activity, Refresh, Close)
}
_PINGS, _PONGS, _OTHERS = map(GATEWAY_FRAMES.labels, ("ping", "pong", "other"))
# Found once: to look a label up costs as much as to read the frame.

_ACKS = {of: encode(Ack(of=of)) for of in ("beat", "activity", "close")}

_numbers = itertools.count(1)

log = structlog.get_logger(__name__)


class Connection:
    """A connection whose token was good when it came."""

    def __init__(
        self,
        socket: web.WebSocketResponse[bool],
        transport: asyncio.Transport,
        who: Presented,
        *,
        clients: Clients,
        close_wait: timedelta,
    ) -> None:
        self.who = who
        self.heard_at = self.pinged_at = asyncio.get_running_loop().time()
        self.heartbeat_period: timedelta | None = None
        """The newest that Redis told, 0 if none is expected; None before it told any."""
        self.ping_period = 0.0
        """Seconds of silence before a ping."""
        self.visit_at: float | None = None
        """When the rounds come by next; None before they do at all."""
        self.number = str(next(_numbers))
        """By which Redis tells it from every other one that this process ever has."""
        self.counted_at: str | None = None
        """Under which id of this gateway Redis counts it, or may do so."""
        self.is_count_unsure = False
        """Redis was asked to count it there anew, and has not said yes."""
        self.left: bool | None = None
        """Once it is over: whether that proves that the client has gone."""
        self._socket = socket
        self._transport = transport
        self._clients = clients
        self._close_wait = close_wait.total_seconds()
        self._is_welcome = False
        self._welcome: Welcome | None = None
        self._token_ends_at = 0.0
        self._told_pending = False
        self._notice: PendingDestroy | None = None
        self._is_closing = False
        self._shut_with: CloseCode | None = None
        self._is_slow = False
        self._closing: asyncio.Task[bool] | None = None

    @property
    def is_shut(self) -> bool:
        """Whether we have closed it."""
        return self._is_slow or self._shut_with is not None

    @property
    def is_over(self) -> bool:
        """Whether either side has ended it."""
        return self.is_shut or self._transport.is_closing()

    @property
    def is_evidence(self) -> bool:
        """Whether its end says that the client has gone: it closed, broke off or fell silent."""
        return not self._is_slow and self._shut_with in (None, CloseCode.SILENT)

    async def run(self, welcome: Welcome) -> None:
        """Greet, then take frames until either side ends it."""
        self._welcome = welcome
        self._note_token(welcome.token_expires_in_seconds)
        await self._say(welcome)
        self._is_welcome = True
        if self._welcome is not welcome:
            await self._say(self._welcome)
        if self._notice is not None:
            await self.tell_pending(self._notice)
        while not self.is_shut:
            message = await self._socket.receive()
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                break
            if message.type is WSMsgType.ERROR:
                self._note_broken(message)
                break
            self.heard_at = asyncio.get_running_loop().time()
            await self._take(message)

    async def finish(self) -> None:
        """Let the closing handshake come to its end."""
        GATEWAY_CLOSES.labels(self._ended_by()).inc()
        if self._closing is not None:
            await self._closing

    def shut(self, code: CloseCode, message: str = "") -> None:
        """Close it, once; whoever is in the middle of a frame finishes that."""
        if self.is_shut:
            return
        self._shut_with = code
        self._closing = asyncio.create_task(
            self._socket.close(code=code, message=message.encode()[:120], drain=False)
        )

    async def ping(self) -> None:
        """Ask for a pong."""
        self.pinged_at = asyncio.get_running_loop().time()
        await self._send(b"", WSMsgType.PING)

    async def tell_heartbeat(self, period: timedelta, ping: timedelta) -> None:
        """Greet anew, with what to plan by from now on; one that is being greeted hears it next.

        What is left of the token is the least: a beat may have moved its end.
        """
        if self._welcome is None:
            return
        left = self._token_ends_at - asyncio.get_running_loop().time()
        self._welcome = msgspec.structs.replace(
            self._welcome,
            heartbeat_seconds=period.total_seconds(),
            ping_seconds=ping.total_seconds(),
            token_expires_in_seconds=max(left, 0.0),
        )
        if self._is_welcome:
            await self._say(self._welcome)

    async def tell_pending(self, notice: PendingDestroy) -> None:
        """Tell that the Session is about to end; one that is not greeted yet learns it then."""
        if not self._is_welcome:
            self._notice = notice
            return
        self._told_pending = True
        await self._say(notice)

    async def tell_restored(self) -> None:
        """Tell that it is not, if it was told that it is."""
        self._notice = None
        if self._told_pending:
            self._told_pending = False
            await self._say(Restored())

    def tell_ended(self, message: str) -> None:
        """Close for the end of the Session; for who wished it, as done."""
        self.shut(CloseCode.DONE if self._is_closing else CloseCode.ENDED, message)

    async def settle(self, answer: Answer) -> None:
        """Act on what Redis said to a beat; close only where it refuses."""
        if answer is Answer.RETURNED:
            await self.tell_restored()
        try:
            self._clients.require(self.who, answer)
        except Retry:
            return
        except Refused as error:
            await self._refuse(error)

    async def _take(self, message: Message) -> None:
        match message.type:
            case WSMsgType.TEXT:
                await self._take_frame(message.data)
            case WSMsgType.PING:
                _PINGS.inc()
                await self._send(message.data, WSMsgType.PONG)
                await self._beat_quietly()
            case WSMsgType.PONG:
                _PONGS.inc()
                await self._beat_quietly()
            case _:
                _OTHERS.inc()
                await self._refuse(_not_understood("frames are text"))

    async def _take_frame(self, data: bytes) -> None:
        try:
            frame = decode_client_frame(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            _OTHERS.inc()
            # Without the decoder's words, which may quote the frame.
            await self._refuse(_not_understood("this is no frame that docs/clients.md knows"))
            return
        _FRAMES[type(frame)].inc()
        try:
            await self._act(frame)
        except (Refused, Retry) as error:
            await self._refuse(error)

    async def _act(self, frame: Hello | Beat | Activity | Refresh | Close) -> None:
        match frame:
            case Beat():
                await self._acknowledge("beat", await self._clients.beat(self.who))
            case Activity(busy_seconds=seconds):
                busy = timedelta(seconds=seconds)
                answer = await self._clients.activity(self.who, busy)
                await self._acknowledge("activity", answer)
            case Refresh():
                await self._refresh()
                await self._beat_quietly()  # else a client that is not pinged for it goes unheard
            case Close():
                self._is_closing = True
                await self._acknowledge("close", await self._clients.close(self.who))
                loop = asyncio.get_running_loop()
                loop.call_later(self._close_wait, self.shut, CloseCode.DONE)
            case Hello():
                raise _not_understood("a hello comes first, and once")

    async def _acknowledge(self, of: str, answer: Answer) -> None:
        self._clients.require(self.who, answer)
        if answer is Answer.RETURNED:
            await self.tell_restored()
        await self._send(_ACKS[of], WSMsgType.TEXT)

    async def _refresh(self) -> None:
        answer, token, lasts = await self._clients.refresh(self.who)
        self._clients.require(self.who, answer)
        self.who = Presented(self.who.uid, token.digest)
        self._note_token(lasts.total_seconds())
        await self._say(NewToken(token=token.text, expires_in_seconds=lasts.total_seconds()))

    def _note_token(self, lasts: float) -> None:
        self._token_ends_at = asyncio.get_running_loop().time() + lasts

    async def _beat_quietly(self) -> None:
        with suppress(Retry):
            await self.settle(await self._clients.beat(self.who))

    async def _refuse(self, error: GpuSessionError) -> None:
        """Say what was refused; close unless it may be better soon."""
        reason = refusals.reason_of(error)
        GATEWAY_REFUSALS.labels(reason).inc()
        await self._say(Error(reason=reason, message=str(error)))
        if not isinstance(error, Retry):
            if reason is RefusalReason.SESSION_ENDING:
                self.tell_ended(str(error))
            else:
                self.shut(refusals.close_code_of(reason), str(error))

    async def _say(self, frame: GatewayFrame) -> None:
        """Send a frame without ever waiting; who reads nothing any more is cut off."""
        await self._send(encode(frame), WSMsgType.TEXT)

    async def _send(self, data: bytes, kind: WSMsgType) -> None:
        if self.is_shut or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > MAX_UNREAD:
            log.info("client reads nothing any more", uid=self.who.uid)
            self._is_slow = True
            self._transport.abort()
            return
        try:  # suppress() would cost as much as the frame
            await self._socket.send_frame(data, kind)
        except (ConnectionError, RuntimeError):
            return

    def _ended_by(self) -> str:
        if self._is_slow:
            return "slow"
        return "client" if self._shut_with is None else str(self._shut_with.value)

    def _note_broken(self, message: Message) -> None:
        """Note that aiohttp closed for a frame that WebSocket refuses; a broken line is none."""
        if self._socket.close_code == CloseCode.FRAME_TOO_BIG:
            self._shut_with = CloseCode.FRAME_TOO_BIG
        elif not isinstance(message.data, OSError | EOFError):
            self._shut_with = CloseCode.NOT_UNDERSTOOD


def pending_notice(why: str | None, until: datetime | None) -> PendingDestroy:
    """Say why and when a Session ends, and whether its client can call that off."""
    deadline = (until or datetime.fromtimestamp(0, UTC)).isoformat(timespec="milliseconds")
    return PendingDestroy(
        reason=why or "", deadline=deadline.replace("+00:00", "Z"), cancellable=why in CANCELLABLE
    )


def _not_understood(message: str) -> Refused:
    return Refused(message, reason=RefusalReason.BAD_REQUEST)
