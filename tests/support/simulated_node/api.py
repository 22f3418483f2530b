"""The kubelet's talk with the apiserver, as whoever the kubeconfig says."""

import asyncio
import base64
import json
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import yaml

TIMEOUT_SECONDS = 10.0
"""A write that an overloaded apiserver has not answered by then is sent again."""

WATCH_SECONDS = 300
"""How long one watch lasts; kubelet's reflector takes 5 to 10 minutes."""

RETRY_SECONDS = (0.1, 2.0)
"""First and longest pause after a failure."""

GONE = 410
STRATEGIC_MERGE = "application/strategic-merge-patch+json"

Object = dict[str, Any]


class Answer(NamedTuple):
    """An HTTP status and the object that came with it."""

    status: int
    body: Object


@dataclass(frozen=True, slots=True)
class Login:
    """What a kubeconfig's current context says."""

    server: str
    tls: ssl.SSLContext
    token: str
    token_file: str

    @classmethod
    def read(cls, kubeconfig: Path) -> Self:
        """Read a kubeconfig with a client certificate, a token or a token file."""
        config = yaml.safe_load(kubeconfig.read_text("utf-8"))
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        with tempfile.TemporaryDirectory() as folder:
            tls = ssl.create_default_context(
                cafile=_file(cluster, "certificate-authority", Path(folder))
            )
            if certificate := _file(user, "client-certificate", Path(folder)):
                tls.load_cert_chain(certificate, _file(user, "client-key", Path(folder)))
        return cls(cluster["server"], tls, user.get("token", ""), user.get("tokenFile", ""))

    def headers(self) -> dict[str, str]:
        """Give what proves who asks; a token file is read anew, since it may be renewed."""
        token = Path(self.token_file).read_text("ascii").strip() if self.token_file else self.token
        return {"Authorization": f"Bearer {token}"} if token else {}


class Api:
    """The four verbs that a kubelet needs; each goes on until the apiserver has decided."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=login.tls, limit=64))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def create(self, path: str, body: Object) -> Answer:
        """POST an object."""
        return await self._insist("POST", path, body)

    async def patch(self, path: str, body: Object) -> Answer:
        """Merge into an object, lists by their keys."""
        return await self._insist("PATCH", path, body, content_type=STRATEGIC_MERGE)

    async def delete(self, path: str, options: Object) -> Answer:
        """DELETE an object."""
        return await self._insist("DELETE", path, options)

    async def list_and_watch(
        self, path: str, *, field_selector: str
    ) -> AsyncIterator[tuple[str, Object]]:
        """Give ("LISTED", list) and then (type, object) for each change, without an end."""
        pauses = _Pauses()
        while True:
            try:
                query = {"fieldSelector": field_selector}
                listed = await self._once("GET", path, query=query)
                if listed.status == 200:
                    pauses.reset()
                    yield "LISTED", listed.body
                    query["resourceVersion"] = listed.body["metadata"]["resourceVersion"]
                    async for event in self._watch(path, query):
                        yield event
            except (aiohttp.ClientError, TimeoutError):
                pass
            await pauses.sleep()

    async def _watch(self, path: str, query: dict[str, str]) -> AsyncIterator[tuple[str, Object]]:
        """Follow watch after watch until one breaks or is too old."""
        query |= {"watch": "1", "allowWatchBookmarks": "1", "timeoutSeconds": str(WATCH_SECONDS)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS)
        while True:
            async with self._http.get(
                self._login.server + path,
                params=query,
                headers=self._login.headers(),
                timeout=timeout,
            ) as response:
                async for line in _lines(response):
                    event = json.loads(line)
                    if response.status != 200 or event["type"] == "ERROR":
                        return
                    query["resourceVersion"] = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield event["type"], event["object"]
                if response.status != 200:
                    return
            await asyncio.sleep(RETRY_SECONDS[0])

    async def _insist(
        self, method: str, path: str, body: Object, *, content_type: str = "application/json"
    ) -> Answer:
        pauses = _Pauses()
        while True:
            try:
                answer = await self._once(method, path, body=body, content_type=content_type)
            except (aiohttp.ClientError, TimeoutError):
                pass
            else:
                if answer.status < 500 and answer.status != 429:
                    _complain(method, path, answer)
                    return answer
            await pauses.sleep()

    async def _once(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        async with self._http.request(
            method,
            self._login.server + path,
            params=query,
            data=None if body is None else json.dumps(body),
            headers=self._login.headers() | {"Content-Type": content_type},
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        ) as response:
            content = await response.read()
            is_json = response.content_type == "application/json"
            return Answer(response.status, json.loads(content) if is_json else {})


class _Pauses:
    """Pauses that double."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._next = RETRY_SECONDS[0]

    async def sleep(self) -> None:
        await asyncio.sleep(self._next)
        self._next = min(2 * self._next, RETRY_SECONDS[1])


def _complain(method: str, path: str, answer: Answer) -> None:
    """Show a refusal to people; that an object is there, gone or another one is no surprise."""
    if answer.status >= 400 and answer.status not in (404, 409):
        message = answer.body.get("message", "")
        print(f"{method} {path}: {answer.status} {message}", file=sys.stderr, flush=True)


def _named(entries: list[Object], name: str) -> Object:
    return next(entry for entry in entries if entry["name"] == name)


def _file(section: Object, key: str, folder: Path) -> str | None:
    """Give the path that a kubeconfig names, or a file with the data that it carries."""
    if data := section.get(f"{key}-data"):
        path = folder / key
        path.touch(mode=0o600)
        path.write_bytes(base64.b64decode(data))
        return str(path)
    return section.get(key)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Give whole lines of any length: an object may be longer than aiohttp's line limit."""
    pending = b""
    async for chunk in response.content.iter_any():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line
