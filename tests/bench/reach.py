"""How soon a revocation, a close and a return are known at every gateway.

A real controller, three gateways, and for each Session a connection at each of them. What
counts is the last of the three to hear it, from the moment at which somebody asked.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
from tests.bench import idlers
from tests.bench.figures import NotMeasuredError, percentile
from tests.bench.idlers import IDLE_SECONDS
from tests.bench.machine import machine, versions
from tests.bench.stage import Stage, stage
from tests.support.progress import progress, say

from gpusession import tokens
from gpusession.api.frames import CloseCode
from gpusession.api.session import Phase
from gpusession.store.clients import TOKEN_LIFE, Answer, ClientStore

GATEWAYS = 3
SESSIONS = 30
"""Of each kind and round, one after the other: each is news of its own."""

PATIENCE = 60.0
PAUSE_SECONDS = 0.05

BASIS = (
    "from the request (for a revocation: the annotation of the Session at the apiserver; for a "
    "close and a return: a client's HTTP request to one gateway) to the frame or close code at "
    "the last of three connections, one at each gateway; one after the other, on a real "
    "controller, apiserver and Redis, default settings"
)

TOLD = {
    "revocation": frozenset({CloseCode.REVOKED}),
    "close": frozenset({"pendingDestroy", CloseCode.ENDED}),
    "return": frozenset({"restored"}),
}
"""What a connection hears of each: the type of a frame, or a close code."""


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    uid: str
    token: str
    lines: Sequence[aiohttp.ClientWebSocketResponse[bool]]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


async def measure(rounds: int) -> dict[str, Any]:
    """Give the figure of so many rounds; raises NotMeasuredError."""
    about = {"machine": machine(), "versions": versions(kubernetes=True)}
    late: dict[str, list[float]] = {kind: [] for kind in TOLD}
    async with stage(controller={}, gateways=GATEWAYS) as here:
        with progress(f"waiting {IDLE_SECONDS} s: nobody is idle before that"):
            await asyncio.sleep(IDLE_SECONDS)
        for number in range(1, rounds + 1):
            for kind, found in (await _round(here, number)).items():
                late[kind] += found
                say(f"round {number}, {kind}: p99 {percentile(found, 0.99) * 1000:.0f} ms")
    rows = [_row(kind, found) for kind, found in late.items()]
    return {"rows": rows, "rounds": rounds, "gateways": GATEWAYS, "basis": BASIS} | about


def table(figure: dict[str, Any]) -> str:
    """Lay a figure out for a person."""
    columns = ("what", "times", "p50_ms", "p99_ms", "max_ms")
    head = f"until the last of {figure['gateways']} gateways has told its client"
    lines = [head, " ".join(f"{column:>10}" for column in columns)]
    lines += [" ".join(f"{row[name]!s:>10}" for name in columns) for row in figure["rows"]]
    return "\n".join(lines)


def _row(kind: str, late: Sequence[float]) -> dict[str, Any]:
    p50, p99 = (round(percentile(late, share) * 1000, 1) for share in (0.5, 0.99))
    worst = round(max(late) * 1000, 1)
    return {"what": kind, "times": len(late), "p50_ms": p50, "p99_ms": p99, "max_ms": worst}


async def _round(here: Stage, number: int) -> dict[str, list[float]]:
    """Have one half come back from a grace and be closed, and revoke the other."""
    names = [f"reach-{number}-{one}" for one in range(2 * SESSIONS)]
    with progress(f"round {number}: {len(names)} Sessions, {GATEWAYS * len(names)} connections"):
        await idlers.create(here.cluster, names)
        await here.watcher.all_in(names, Phase.ACTIVE, seconds=PATIENCE)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        _connected(here, http, names) as known,
    ):
        closed, revoked = known[:SESSIONS], known[SESSIONS:]
        await _all_pending(here, closed)

        def post(path: str) -> Callable[[_Known], Awaitable[None]]:
            return lambda one: _post(http, here.stack.gateways[0].url + path, one)

        async def revoke(one: _Known) -> None:
            change = {"metadata": {"annotations": {"gpusession.dev/revoke": "bench"}}}
            await here.cluster.patch("sessions", one.name, change)

        return {
            "return": await _each(closed, post("/v1/activity"), TOLD["return"]),
            "close": await _each(closed, post("/v1/close"), TOLD["close"]),
            "revocation": await _each(revoked, revoke, TOLD["revocation"]),
        }


@asynccontextmanager
async def _connected(
    here: Stage, http: aiohttp.ClientSession, names: Sequence[str]
) -> AsyncIterator[list[_Known]]:
    store = ClientStore(here.redis)
    async with AsyncExitStack() as open_now:
        found = []
        for name in names:
            uid = here.watcher.standing[name].uid
            token = tokens.mint(uid)
            if (await store.mint(uid, token.digest, TOKEN_LIFE)).answer is not Answer.OK:
                raise NotMeasuredError(f"Session {name} has no record in Redis")
            headers = {"Authorization": f"Bearer {token.text}"}
            lines = []
            for gateway in here.stack.gateways:
                url = f"{gateway.url}/v1/connect"
                line = await open_now.enter_async_context(http.ws_connect(url, headers=headers))
                await line.receive(PATIENCE)  # the welcome
                lines.append(line)
            found.append(_Known(name, uid, token.text, lines))
        yield found


async def _all_pending(here: Stage, known: Sequence[_Known]) -> None:
    uids = [one.uid for one in known]
    await idlers.set_deadlines(here.redis, uids, ends=[time.time()] * len(uids))
    told = (_heard(one, frozenset({"pendingDestroy"})) for one in known)
    with progress("letting them become idle"):
        await asyncio.gather(*told)


async def _each(
    known: Sequence[_Known], ask: Callable[[_Known], Awaitable[None]], told: frozenset[Any]
) -> list[float]:
    late = []
    for one in known:
        began = time.monotonic()
        _, heard = await asyncio.gather(ask(one), _heard(one, told))
        late.append(heard - began)
        await asyncio.sleep(PAUSE_SECONDS)
    return late


async def _post(http: aiohttp.ClientSession, url: str, one: _Known) -> None:
    async with http.post(url, headers=one.headers) as answer:
        if answer.status not in (HTTPStatus.OK, HTTPStatus.ACCEPTED):
            raise NotMeasuredError(f"{url} answered {answer.status}: {await answer.text()}")


async def _heard(one: _Known, told: frozenset[Any]) -> float:
    """Give when the last connection heard it."""
    return max(await asyncio.gather(*(_line_heard(line, told) for line in one.lines)))


async def _line_heard(line: aiohttp.ClientWebSocketResponse[bool], told: frozenset[Any]) -> float:
    async with asyncio.timeout(PATIENCE):
        while True:
            message = await line.receive()
            now = time.monotonic()
            match message.type:
                case aiohttp.WSMsgType.TEXT:
                    news = message.json()["type"]
                case aiohttp.WSMsgType.CLOSE:
                    news = message.data
                case _:
                    raise NotMeasuredError(f"a connection ended with {message}")
            if news in told:
                return now
            if message.type is aiohttp.WSMsgType.CLOSE:
                raise NotMeasuredError(f"a connection was closed with {news}")
