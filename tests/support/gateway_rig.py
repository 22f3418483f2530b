"""A real gateway process, and the clients and records that tests put around it."""

import asyncio
import itertools
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

import aiohttp
from tests.support.processes import Process, ProcessFailedError, free_port, wait_until
from tests.support.records import LIFETIME, liveness

from gpusession import tokens
from gpusession.api.session import RecordState
from gpusession.store.client import RedisClient
from gpusession.store.clients import TOKEN_LIFE, Answer, ClientStore
from gpusession.store.pulse import Pulse
from gpusession.store.sessions import Record, SessionStore

NAMESPACE = "ns"
PATIENCE = 10.0
"""A guard against hanging, not a figure."""

StartGateway = Callable[..., Awaitable["Desk"]]
"""Starts a gateway of the test's own on a Redis, with settings."""

_names = itertools.count()


class GatewayProcess:
    """`gpusession gateway` on loopback, as its own process."""

    def __init__(
        self, workdir: Path, *, redis_url: str, kubeconfig: Path, **settings: object
    ) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.log = workdir / "gateway.log"
        given = {
            "redis_url": redis_url,
            "kubeconfig": kubeconfig,
            "listen_host": "127.0.0.1",
            "port": self.port,
            "metrics_port": self.metrics_port,
            "identity": "gw",
            "log_level": "DEBUG",
            "drain_spread": timedelta(seconds=0.2),
        } | settings
        env = {f"GPUSESSION_{name.upper()}": _text(value) for name, value in given.items()}
        self._process = Process(
            [sys.executable, "-m", "gpusession", "gateway"],
            log=self.log,
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **env},
        )

    def __enter__(self) -> Self:
        self._process.start()
        try:
            wait_until(
                lambda: "gateway serves" in self.log_text() and self._is_ready(),
                timeout=20,
                what="the gateway",
                processes=[self._process],
            )
        except ProcessFailedError:
            self._process.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.resume()
        self._process.stop()

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"{self.probes}/readyz", timeout=5) as answer:  # noqa: S310 - http
                return answer.status == HTTPStatus.OK
        except OSError:
            return False

    @property
    def process(self) -> Process:
        """The process itself, to be ended, killed or frozen."""
        return self._process

    @property
    def url(self) -> str:
        """Where clients come."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def probes(self) -> str:
        """Where kubelet and Prometheus come."""
        return f"http://127.0.0.1:{self.metrics_port}"

    def log_text(self) -> str:
        """Everything that it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass(frozen=True, slots=True)
class Known:
    """A Session that Redis knows, and a token for it."""

    uid: str
    name: str
    token: str
    counter: int = 0
    """Where its record's counter began."""

    @property
    def digest(self) -> str:
        """What Redis knows of the token."""
        presented = tokens.parse(self.token)
        assert presented is not None
        return presented.digest

    @property
    def headers(self) -> dict[str, str]:
        """What a client of it sends."""
        return {"Authorization": f"Bearer {self.token}"}


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, read whole."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def reason(self) -> tuple[int, str]:
        """What a refusal is told apart by."""
        return self.status, self.body["reason"]


class Desk:
    """Redis, seen as the controller does, and an HTTP client in front of one gateway."""

    def __init__(
        self, redis: RedisClient, gateway: GatewayProcess, http: aiohttp.ClientSession
    ) -> None:
        self.redis = redis
        self.gateway = gateway
        self.http = http
        self.sessions = SessionStore(redis)
        self.clients = ClientStore(redis)

    async def known(self, *, user: str | None = None, **changed: Any) -> Known:
        """Open a record and mint a token for it."""
        uid, name = str(uuid.uuid4()), f"session-{next(_names)}"
        token = tokens.mint(uid)
        known = Known(uid, name, token.text)
        await self.reopen(known, user=user, **changed)
        known = replace(known, counter=(await self.record(known)).n)
        grant = await self.clients.mint(uid, token.digest, TOKEN_LIFE)
        assert grant.answer is Answer.OK
        return known

    async def reopen(
        self,
        known: Known,
        *,
        user: str | None = None,
        namespace: str = NAMESPACE,
        **changed: Any,
    ) -> None:
        """Open its record as the controller does, and does again after Redis lost it."""
        await self.sessions.open(
            uid=known.uid,
            namespace=namespace,
            name=known.name,
            user=user,
            node="n1",
            lifetime=LIFETIME,
            liveness=liveness(**changed),
        )

    async def record(self, known: Known) -> Record:
        """Read its record, which must be there."""
        sighting = await self.sessions.read(known.uid)
        assert sighting is not None
        return sighting.record

    async def signs(self, known: Known) -> int:
        """Count the signs of life since its record was opened."""
        return (await self.record(known)).n - known.counter

    async def has_beaten(self, known: Known, times: int) -> bool:
        """Whether a client that is connected has been heard so often since."""
        return await self.signs(known) > times  # the connect is one more

    async def pending(self, known: Known, why: str, *, grace: float = 60.0) -> None:
        """Have its end begin, as the controller does."""
        await self.sessions.claim(
            known.uid,
            to=RecordState.PENDING,
            why=why,
            grace=timedelta(seconds=grace),
            counter=None,
            watch=(await Pulse(self.redis).tick()).proof,
        )

    async def call(self, method: str, path: str, known: Known | None = None, **more: Any) -> Reply:
        """Send one request; a body of bytes is sent as it is."""
        headers = (known.headers if known else {}) | more.pop("headers", {})
        async with self.http.request(
            method, self.gateway.url + path, headers=headers, **more
        ) as answer:
            text = await answer.text()
            return Reply(answer.status, json.loads(text), answer.headers)

    @asynccontextmanager
    async def socket(self, known: Known, **more: Any) -> AsyncIterator["Socket"]:
        """Connect with the token in the header, and read the welcome."""
        headers = known.headers | more.pop("headers", {})
        async with self.http.ws_connect(
            self.gateway.url + "/v1/connect", headers=headers, **more
        ) as raw:
            socket = Socket(raw)
            socket.welcome = await socket.next()
            yield socket

    @asynccontextmanager
    async def reading(self, known: Known) -> AsyncIterator["Socket"]:
        """Connect a client that says nothing and reads, and so answers pings: a browser."""
        async with self.socket(known) as socket:
            reading = asyncio.create_task(socket.read_on())
            yield socket
            reading.cancel()
            await asyncio.wait({reading})

    async def probe(self, path: str) -> tuple[int, str]:
        """Ask a probe or for metrics."""
        async with self.http.get(self.gateway.probes + path) as answer:
            return answer.status, await answer.text()

    async def metric(self, name: str) -> float:
        """Read one sample, by name and labels as in the text."""
        lines = (await self.probe("/metrics"))[1].splitlines()
        found = [line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")]
        return float(found[0]) if found else 0.0


class Socket:
    """A client's end of a WebSocket."""

    def __init__(self, raw: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self.raw = raw
        self.welcome: dict[str, Any] = {}
        self.heard: list[dict[str, Any]] = []
        """What came while somebody read on."""

    async def next(self) -> dict[str, Any]:
        """Read the next frame; fails where the connection is closed instead."""
        message = await self.raw.receive(PATIENCE)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        frame: dict[str, Any] = json.loads(message.data)
        return frame

    async def read_on(self) -> None:
        """Read until the connection ends, and keep what comes."""
        while (message := await self.raw.receive()).type is aiohttp.WSMsgType.TEXT:
            self.heard.append(json.loads(message.data))

    async def hears(self, **said: Any) -> None:
        """Wait until somebody who reads on has kept a frame that says so."""

        async def has_come() -> bool:
            return any(said.items() <= frame.items() for frame in self.heard)

        await eventually(has_come, what=f"a frame with {said}")

    async def say(self, kind: str, **fields: Any) -> None:
        """Send a frame."""
        await self.raw.send_str(json.dumps({"type": kind} | fields))

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a frame and read the next one."""
        await self.say(kind, **fields)
        return await self.next()

    async def closed(self) -> int | None:
        """Read on until the gateway closes, and give its code."""
        async with asyncio.timeout(PATIENCE):
            while not self.raw.closed:
                message = await self.raw.receive()
                if message.type is aiohttp.WSMsgType.CLOSE:
                    # What was said: `close_code` is 1006 where our answer came too late.
                    return int(message.data)
        return self.raw.close_code


@asynccontextmanager
async def desk(redis_url: str, gateway: GatewayProcess) -> AsyncIterator[Desk]:
    """Give a desk in front of a running gateway."""
    async with (
        RedisClient(redis_url, timeout=timedelta(seconds=5)) as redis,
        aiohttp.ClientSession() as http,
    ):
        yield Desk(redis, gateway, http)


def _text(value: object) -> str:
    if isinstance(value, timedelta):
        return f"PT{value.total_seconds():f}S"
    return str(value)


async def eventually(ask: Any, *, what: str) -> None:
    """Wait until an async question is answered with something true."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not await ask():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {PATIENCE:g} s") from None
