"""Single HTTP calls to the gateway: one-shot beats, and tokens for Kubernetes identities."""

import asyncio
import ssl
from datetime import timedelta
from http import HTTPStatus
from typing import TypeVar

import aiohttp
import msgspec

from gpusession.api.frames import SESSION_HEADER, Refusal, encode
from gpusession.api.session import Words
from gpusession.client.ending import ABNORMAL, Ending, refusal

T = TypeVar("T")


class Calls:
    """Posts to one gateway; an answer that is no success comes back as an Ending.

    Errors of the HTTP library never pass: some hold the request's headers, token and all.
    """

    def __init__(self, base: str, *, tls: ssl.SSLContext | None, timeout: timedelta) -> None:
        self.base = base
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=True if tls is None else tls)
        )
        self._timeout = timeout

    async def close(self) -> None:
        """Close all connections."""
        await self.http.close()

    async def post(
        self, path: str, kind: type[T], *, bearer: str, body: Words | None, session: str | None
    ) -> T | Ending:
        """Post a body to a route, as the bearer of a token."""
        headers = bearer_headers(bearer, session)
        data = None if body is None else encode(body)
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with (
                asyncio.timeout(self._timeout.total_seconds()),
                self.http.post(
                    self.base + path, data=data, headers=headers, allow_redirects=False
                ) as response,
            ):
                answer = await response.read()
                if response.status not in {HTTPStatus.OK, HTTPStatus.ACCEPTED}:
                    after = response.headers.get("Retry-After")
                    return refusal(response.status, reason=_reason(answer), retry_after=after)
                return msgspec.json.decode(answer, type=kind)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError) as error:
            return Ending(ABNORMAL, type(error).__name__)


def bearer_headers(token: str, session: str | None) -> dict[str, str]:
    """Give the headers that say who asks, and for which Session if that is known."""
    headers = {"Authorization": f"Bearer {token}"}
    if session is not None:
        headers[SESSION_HEADER] = session
    return headers


def _reason(answer: bytes) -> str:
    try:
        return msgspec.json.decode(answer, type=Refusal).reason
    except msgspec.MsgspecError:
        return ""
