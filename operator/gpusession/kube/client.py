"""One request to kube-apiserver, and what its answer means for the caller.

No retries here: the destroy channel retries whole decisions, after looking again.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import aiohttp

from gpusession.errors import ApiUnavailable, GpuSessionError, Refused, Stale
from gpusession.metrics import API_REQUESTS

JSON_PATCH = "application/json-patch+json"

WATCH_SILENCE = timedelta(seconds=75)
"""A watch without even a bookmark for this long is dead: the apiserver sends one a minute."""


class KubeClient:
    """Sends requests and turns failures into our errors.

    Raises ApiUnavailable (no answer, 401, 429, 5xx), Stale (404 or 409 on a write, a JSON
    patch whose test failed), Refused (other 4xx).
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        server: str,
        watch_silence: timedelta = WATCH_SILENCE,
    ) -> None:
        self._session = session
        self._server = server.rstrip("/")
        self._watch_timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=session.timeout.total,
            sock_read=watch_silence.total_seconds(),
        )

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> bytes | None:
        """Read one object or list; None when it does not exist."""
        status, body, _ = await self._exchange("GET", path, params=params)
        return None if status == HTTPStatus.NOT_FOUND else body

    async def send(
        self, method: str, path: str, *, body: Any, content_type: str = "application/json"
    ) -> bytes:
        """Write; returns the object as the apiserver has it after the write."""
        status, answer, _ = await self._exchange(
            method, path, data=json.dumps(body).encode(), content_type=content_type
        )
        if status == HTTPStatus.NOT_FOUND:
            raise Stale(f"{method} {path}: {_sentence(answer)}")
        return answer

    async def follow(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a watch until the server ends it; who leaves early closes it.

        Raises ApiUnavailable when the stream breaks or stays silent, Stale on 410.
        """
        try:
            async with self._session.get(
                self._server + path, params=params, timeout=self._watch_timeout
            ) as response:
                if response.status != HTTPStatus.OK:
                    answer = await response.read()
                    raise _error_of(
                        f"watch {path}", response.status, answer, headers=response.headers
                    )
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield line
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiUnavailable(f"watch {path}: {error!r}") from error

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        data: bytes | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, bytes, Mapping[str, str]]:
        try:
            async with self._session.request(
                method,
                self._server + path,
                params=params,
                data=data,
                headers={"Content-Type": content_type, "Accept": "application/json"},
            ) as response:
                body = await response.read()
                status, headers = response.status, response.headers
        except (TimeoutError, aiohttp.ClientError) as error:
            API_REQUESTS.labels(method, "none").inc()
            raise ApiUnavailable(f"{method} {path}: {error!r}") from error
        API_REQUESTS.labels(method, f"{status // 100}xx").inc()
        if status < HTTPStatus.BAD_REQUEST or status == HTTPStatus.NOT_FOUND:
            return status, body, headers
        raise _error_of(
            f"{method} {path}", status, body, headers=headers, content_type=content_type
        )


def _error_of(
    request: str,
    status: int,
    body: bytes,
    headers: Mapping[str, str],
    *,
    content_type: str = "",
) -> GpuSessionError:
    sentence = f"{request}: {status} {_sentence(body)}"
    if status in (HTTPStatus.CONFLICT, HTTPStatus.GONE):
        return Stale(sentence)
    is_invalid = status == HTTPStatus.UNPROCESSABLE_ENTITY
    if is_invalid and content_type == JSON_PATCH and not _has_causes(body):
        return Stale(sentence)  # the way kube-apiserver reports a failed `test` operation
    retryable = (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)
    if status in retryable or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        seconds = headers.get("Retry-After", "")
        after = timedelta(seconds=int(seconds)) if seconds.isdigit() else None
        return ApiUnavailable(sentence, after=after)
    return Refused(sentence, reason=_word(status))


def _has_causes(body: bytes) -> bool:
    """Whether an invalid object is what is complained of, field by field."""
    try:
        return bool(json.loads(body)["details"].get("causes"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _word(status: int) -> str:
    try:
        return HTTPStatus(status).phrase.replace(" ", "")
    except ValueError:
        return "Refused"  # a proxy's own number, as nginx' 499


def _sentence(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
