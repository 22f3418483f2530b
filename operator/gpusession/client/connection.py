"""One WebSocket from its dial to its end: frames out, acks in, silence noticed."""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus

import aiohttp
import msgspec

from gpusession.api.frames import (
    Ack,
    ClientFrame,
    Error,
    GatewayFrame,
    NewToken,
    RefusalReason,
    SessionAnswer,
    Welcome,
    decode_gateway_frame,
    encode,
)
from gpusession.client.backoff import Timing
from gpusession.client.calls import Calls, bearer_headers
from gpusession.client.ending import ABNORMAL, Ending, refusal

log = logging.getLogger("gpusession.client")

_A_CLOSE_FOLLOWS = frozenset(
    {
        RefusalReason.BAD_REQUEST,
        RefusalReason.TOKEN_UNKNOWN,
        RefusalReason.TOKEN_EXPIRED,
        RefusalReason.TOKEN_REVOKED,
        RefusalReason.WRONG_SESSION,
        RefusalReason.SESSION_ENDING,
    }
)
"""Errors that are about more than one frame: the code of the close decides what is next."""

_LARGEST_FRAME = 64 * 1024
_GOODBYE_SECONDS = 1.0


class LostError(Exception):
    """The connection is gone; what was asked may or may not have been recorded."""


class RefusedError(Exception):
    """The gateway refused a frame and keeps the connection; the text is its reason."""


async def dial(
    calls: Calls, token: str, session: str | None, timing: Timing
) -> "Connection | Ending":
    """Connect and wait for the welcome; whatever goes wrong is an Ending.

    Errors of the HTTP library never pass: a refused upgrade holds the request's headers.
    """
    try:
        async with asyncio.timeout(timing.dial_timeout.total_seconds()):
            socket = await calls.http.ws_connect(
                calls.base + "/v1/connect",
                headers=bearer_headers(token, session),
                timeout=aiohttp.ClientWSTimeout(ws_close=_GOODBYE_SECONDS),
                autoping=False,  # a ping is a sign of life that must be seen here
                max_msg_size=_LARGEST_FRAME,
            )
    except aiohttp.WSServerHandshakeError as error:
        if error.status == HTTPStatus.FORBIDDEN:
            return await _why_forbidden(calls, token, session)
        after = error.headers.get("Retry-After") if error.headers is not None else None
        return refusal(error.status, retry_after=after)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return Ending(ABNORMAL, type(error).__name__)
    connection = Connection(socket, timing)
    try:
        ending = await connection.greeted()
    except BaseException:
        await connection.leave()
        raise
    if ending is not None:
        await connection.leave()
        return ending
    return connection


async def _why_forbidden(calls: Calls, token: str, session: str | None) -> Ending:
    """Ask once more by a call, since the body of a refused upgrade is not to be had."""
    answer = await calls.post(
        "/v1/heartbeat", SessionAnswer, bearer=token, body=None, session=session
    )
    return answer if isinstance(answer, Ending) else refusal(HTTPStatus.FORBIDDEN)


class Connection:
    """An open WebSocket; `read` must run for anything to be acknowledged."""

    welcome: Welcome
    """The last one: the Session's heartbeat may change while it is open."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, timing: Timing) -> None:
        self._socket = socket
        self._timing = timing
        self._asked: dict[str, deque[asyncio.Future[GatewayFrame]]] = defaultdict(deque)
        self._reason = ""
        self._welcomed_anew = asyncio.Event()

    @property
    def period(self) -> timedelta:
        """How far apart beats are due; zero where none are."""
        return timedelta(seconds=self.welcome.heartbeat_seconds)

    async def greeted(self) -> Ending | None:
        """Wait for the welcome; None once it is here."""
        silence = self._timing.dial_timeout
        while True:
            answer = await self._next(silence)
            match answer:
                case Ending():
                    return answer
                case Welcome():
                    self.welcome = answer
                    return None
                case Error():
                    self._reason = answer.reason
                case _:
                    pass

    async def read(self, heard: Callable[[GatewayFrame], None]) -> Ending:
        """Hand on what the gateway says, until the connection ends."""
        try:
            while not isinstance(frame := await self._next(self._silence()), Ending):
                if frame is not None:
                    self._settle(frame)
                    heard(frame)
            return frame
        finally:
            for waiting in self._asked.values():
                _fail(waiting, LostError("the connection ended"))

    async def welcomed_anew(self, until: float | None) -> bool:
        """Wait for another welcome, until a moment of the loop's clock; says whether one came.

        For one caller, who reads `welcome` then. One that came before the call counts once.
        """
        try:
            async with asyncio.timeout_at(until):
                await self._welcomed_anew.wait()
        except TimeoutError:
            return False
        self._welcomed_anew.clear()
        return True

    async def ask(self, frame: ClientFrame) -> GatewayFrame:
        """Send a frame and wait for its ack; one that stays out ends the connection.

        Raises LostError, or RefusedError where the gateway refused the frame alone.
        """
        kind = str(frame.__struct_config__.tag)
        if self._socket.closed:
            raise LostError("the connection ended")
        answer: asyncio.Future[GatewayFrame] = asyncio.get_running_loop().create_future()
        self._asked[kind].append(answer)
        try:
            async with asyncio.timeout(self._timing.ack_within(self.period).total_seconds()):
                await self._socket.send_str(encode(frame).decode())
                return await answer
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            log.warning("no ack for a %s: connecting anew", kind)
            await self.leave()
            raise LostError(f"no ack for a {kind}") from error
        finally:
            answer.cancel()

    async def leave(self) -> None:
        """Close the connection, in a second at most."""
        await self._socket.close()

    def _silence(self) -> timedelta:
        return self._timing.silence(timedelta(seconds=self.welcome.ping_seconds))

    async def _next(self, silence: timedelta) -> GatewayFrame | Ending | None:
        """Wait for the next sign of life: a frame, the end, or None for anything else."""
        try:
            message = await self._socket.receive(timeout=silence.total_seconds() or None)
        except TimeoutError:
            return Ending(ABNORMAL, "silence")
        match message.type:
            case aiohttp.WSMsgType.PING:
                await self._pong(message.data)
                return None
            case aiohttp.WSMsgType.TEXT:
                return _decode(message.data)
            case aiohttp.WSMsgType.PONG | aiohttp.WSMsgType.BINARY:
                return None
            case _:
                said = message.extra if isinstance(message.extra, str) else ""
                # A sentence is for people: the word of the error before it is better.
                reason = said if said.isalnum() else self._reason or said
                return Ending(self._socket.close_code or ABNORMAL, reason)

    async def _pong(self, payload: bytes) -> None:
        try:
            await self._socket.pong(payload)
        except (aiohttp.ClientError, OSError):
            log.debug("the connection ended before a pong")

    def _settle(self, frame: GatewayFrame) -> None:
        match frame:
            case Ack():
                waiting = self._asked[frame.of]
            case NewToken():
                waiting = self._asked["refresh"]
            case Welcome():
                self.welcome = frame
                self._welcomed_anew.set()
                return
            case Error() if frame.reason in _A_CLOSE_FOLLOWS:
                self._reason = frame.reason
                return
            case Error():
                # It does not say which frame it is about, and all are cheap to repeat.
                for all_of_a_kind in self._asked.values():
                    _fail(all_of_a_kind, RefusedError(frame.reason))
                return
            case _:
                return
        if waiting and not (oldest := waiting.popleft()).done():
            oldest.set_result(frame)


def _fail(waiting: deque[asyncio.Future[GatewayFrame]], error: Exception) -> None:
    while waiting:
        answer = waiting.popleft()
        if not answer.done():
            answer.set_exception(error)


def _decode(text: str) -> GatewayFrame | None:
    try:
        return decode_gateway_frame(text)
    except msgspec.DecodeError:
        log.debug("a frame was not understood, maybe from a newer gateway")
        return None
