"""What every route of the gateway reads of a request, and the middleware around them.

A token comes in the Authorization header and nowhere else: addresses end up in logs of
proxies and in histories of browsers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Container
from datetime import timedelta
from http import HTTPStatus
from typing import TypeVar

import msgspec
import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from gpusession import tokens
from gpusession.api.frames import Refusal, RefusalReason, encode
from gpusession.api.session import Words
from gpusession.errors import GpuSessionError, Refused
from gpusession.gateway import refusals
from gpusession.kube.reviews import bearer_token
from gpusession.metrics import GATEWAY_REFUSALS
from gpusession.tokens import Presented

W = TypeVar("W", bound=Words)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SECRET_PARAMETERS = frozenset({"token", "access_token", "bearer", "authorization"})

_OF_STATUS = {
    HTTPStatus.NOT_FOUND: RefusalReason.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: RefusalReason.METHOD_NOT_ALLOWED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: RefusalReason.TOO_LARGE,
}

log = structlog.get_logger(__name__)


def presented(request: web.Request) -> Presented:
    """Read the Session token of a request; raises Refused."""
    text = bearer_token(request.headers.get(hdrs.AUTHORIZATION))
    who = None if text is None else tokens.parse(text)
    if who is None:
        raise Refused("a Session token is needed", reason=RefusalReason.TOKEN_UNKNOWN)
    return who


async def read_body(request: web.Request, kind: type[W], *, within: timedelta) -> W:
    """Read the body as these words, empty as all defaults; raises Refused."""
    try:
        async with asyncio.timeout(within.total_seconds()):
            body = await request.read()
    except TimeoutError as error:
        message = f"the body did not come within {within.total_seconds():g} s"
        raise Refused(message, reason=RefusalReason.SLOW_REQUEST) from error
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"the body is no {kind.__name__}, see docs/clients.md"
        raise Refused(message, reason=RefusalReason.BAD_REQUEST) from error


def answer(words: Words) -> web.Response:
    """Give words as 200."""
    return _json(words, HTTPStatus.OK)


def _json(words: Words, status: HTTPStatus, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=encode(words), status=status, content_type="application/json", headers=headers
    )


def guard(*, allowed_origins: Container[str], write_timeout: timedelta) -> Middleware:
    """Build the middleware: refuses what no route may see, words every error, bounds writing."""
    seconds = write_timeout.total_seconds()

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _refuse_secrets_in_url(request)
            _refuse_foreign_page(request, allowed_origins)
            response = await handler(request)
        except GpuSessionError as error:
            response = _refusal(error)
        except web.HTTPException as error:
            response = _refusal(_of_http(error))
        except Exception:
            log.exception("request failed", path=request.path)
            response = _refusal(GpuSessionError("see the gateway's log"))
        if not isinstance(response, web.WebSocketResponse):
            await _write(request, response, seconds)
        return response

    return guarded


async def _write(request: web.Request, response: web.StreamResponse, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()


def _refuse_secrets_in_url(request: web.Request) -> None:
    named = SECRET_PARAMETERS & {name.lower() for name in request.query}
    if named or "gs1_" in request.path_qs:
        raise Refused(
            "a token does not belong in an address: send it as Authorization: Bearer, and take "
            "this one for known to others",
            reason=RefusalReason.TOKEN_IN_URL,
        )


def _refuse_foreign_page(request: web.Request, allowed: Container[str]) -> None:
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and origin not in allowed:
        raise Refused("pages of this origin may not connect", reason=RefusalReason.ORIGIN_REFUSED)


def _of_http(error: web.HTTPException) -> Refused:
    status = HTTPStatus(error.status)
    reason = _OF_STATUS.get(status, RefusalReason.BAD_REQUEST)
    return Refused(status.phrase, reason=reason)


def _refusal(error: GpuSessionError) -> web.Response:
    reason = refusals.reason_of(error)
    GATEWAY_REFUSALS.labels(reason).inc()
    words = Refusal(reason=reason, message=str(error))
    return _json(words, refusals.STATUS[reason], refusals.retry_after(error))
