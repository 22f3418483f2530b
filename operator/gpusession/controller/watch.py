"""Runs Kopf, and stops it last: on exit it cancels every task that was born after its own.

Kopf looks once, at its start, for what it is to watch, and goes on without a word where it
finds nothing: a process that has opened no watch in time ends, to be started again.

SIGTERM goes through timed stages: no new keys are taken, work in hand gets `drain_timeout`,
then the watch ends. Whatever is not finished by then is found again by the next leader.
"""

import asyncio
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import aiohttp
import kopf
import structlog

from gpusession.controller.handlers import build_registry, build_settings
from gpusession.controller.intake import Intake
from gpusession.controller.queue import DestroyQueue
from gpusession.errors import NotWatching
from gpusession.kube.connection import KubeConnection
from gpusession.kube.reader import SESSIONS
from gpusession.lifetime import first_of, stop_on_signals

CONNECTIONS = 4
"""Kopf's own session: one watch, one page of a list, one spare for a reconnect."""

LEAVE_SECONDS = 2.0
"""For Kopf to close its connections when nothing is left to be done; it takes milliseconds."""

log = structlog.get_logger()


async def watch_sessions(
    connection: KubeConnection,
    *,
    intake: Intake,
    queue: DestroyQueue,
    identity: str,
    opened: asyncio.Event,
    stop: asyncio.Event,
    drain_timeout: timedelta,
) -> None:
    """Watch until `stop`, then drain; sets `opened` once everything is listed and watched.

    Raises NotWatching when Kopf gives up before `stop`. Kopf is told who it is: it would ask
    passwd for the name of its user, who may have none.
    """

    async def log_in() -> kopf.AiohttpSession:
        session = connection.session(connections=CONNECTIONS, traces=[_telling_of_watch(opened)])
        return kopf.AiohttpSession(server=connection.server, aiohttp_session=session)

    ready, stop_kopf = asyncio.Event(), asyncio.Event()
    operator = asyncio.create_task(
        kopf.operator(
            registry=build_registry(intake, log_in),
            settings=build_settings(),
            identity=identity,  # type: ignore[arg-type]  # a NewType that Kopf keeps to itself
            standalone=True,
            clusterwide=True,
            ready_flag=ready,
            stop_flag=stop_kopf,
        ),
        name="kopf",
    )
    try:
        await first_of(ready, operator)
        stop_on_signals(stop)  # in place of Kopf's own handlers, which end at once
        await first_of(stop, operator)
    except asyncio.CancelledError:  # deposed: Kopf would be left behind, its connections open
        operator.cancel()
        await asyncio.wait((operator,), timeout=LEAVE_SECONDS)
        raise
    if not stop.is_set():
        await asyncio.wait((operator,))  # it may still cancel what was born after it
        raise NotWatching(f"Kopf has ended: {operator.exception()!r}")
    log.info("draining", seconds=drain_timeout.total_seconds())
    queue.shut()
    try:
        async with asyncio.timeout(drain_timeout.total_seconds()):
            await queue.drained()
    except TimeoutError:
        log.warning("work in hand is left to the next start")
    stop_kopf.set()
    await operator


async def require_opened(opened: asyncio.Event, *, within: timedelta) -> None:
    """Return once the watch is open; raises NotWatching where it is not in time."""
    try:
        async with asyncio.timeout(within.total_seconds()):
            await opened.wait()
    except TimeoutError:
        raise NotWatching(
            f"Kopf has opened no watch of Sessions within {within.total_seconds():g} s"
        ) from None


def _telling_of_watch(opened: asyncio.Event) -> aiohttp.TraceConfig:
    """Have a session set `opened` once the apiserver has accepted a watch of Sessions."""

    async def ended(_: Any, __: Any, request: aiohttp.TraceRequestEndParams) -> None:
        is_watch = request.url.path == SESSIONS and "watch" in request.url.query
        if is_watch and request.response.status == HTTPStatus.OK:
            opened.set()

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(ended)
    return trace
