"""HTTP edge of the agent: authenticate, decode, call one object, encode.

`api_app` is served over TLS to the controller alone; `probe_app` is plain and tells
kubelet and Prometheus how the agent is. Every 4xx and 5xx carries a Problem.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gpusession.agent.bind import Binder
from gpusession.agent.callers import FORBIDDEN, UNAUTHENTICATED, CallerCheck
from gpusession.agent.cgroups import POD_UID
from gpusession.agent.inventory import Inventory
from gpusession.agent.ledger import Ledger
from gpusession.agent.nvml import BlindReason, Nvml
from gpusession.agent.pid_namespace import PidNamespace
from gpusession.agent.rebuild import Rebuild
from gpusession.agent.release import Releaser
from gpusession.agent.usage import UsageWatch
from gpusession.api.release import (
    BindRequest,
    Problem,
    ReleaseOrder,
    ReleaseRequest,
    ReleaseResponse,
)
from gpusession.errors import Refused, Retry, StaleLeader
from gpusession.metrics import AGENT_REQUESTS

W = TypeVar("W", bound=msgspec.Struct)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY = 1024 * 1024
"""Bytes of a request: 32 orders with 100 GPUs and 100 keys each need a fifth of it."""

BAD_REQUEST = "BadRequest"

_STATUS_OF_REASON = {
    UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    FORBIDDEN: HTTPStatus.FORBIDDEN,
}

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""A DNS name, as Kubernetes names objects: these become part of a URL."""

_SESSION_UID = re.compile(r"[0-9A-Za-z-]{1,64}")

log = structlog.get_logger(__name__)


class AgentApi:
    """The routes of the TLS port."""

    def __init__(
        self,
        *,
        binder: Binder,
        releaser: Releaser,
        inventory: Inventory,
        usage: UsageWatch,
        ledger: Ledger,
    ) -> None:
        self._binder = binder
        self._releaser = releaser
        self._inventory = inventory
        self._usage = usage
        self._ledger = ledger

    async def bind(self, request: web.Request) -> web.Response:
        """POST /v1/bind."""
        asked = await _decode(request, BindRequest)
        _refuse_malformed(asked)
        await self._fence(asked.leader_epoch)
        return _json(await self._binder.bind(asked))

    async def release(self, request: web.Request) -> web.Response:
        """POST /v1/releases: all at once, answered in order."""
        asked = await _decode(request, ReleaseRequest)
        for order in asked.releases:
            _refuse_malformed(order)
            await self._fence(order.leader_epoch)
        reports = await asyncio.gather(*map(self._releaser.release, asked.releases))
        return _json(ReleaseResponse(reports=tuple(reports)))

    async def gpus(self, _: web.Request) -> web.Response:
        """GET /v1/gpus."""
        return _json(await self._inventory.gpus())

    async def contexts(self, _: web.Request) -> web.Response:
        """GET /v1/contexts."""
        return _json(await self._inventory.contexts())

    async def usage(self, _: web.Request) -> web.Response:
        """GET /v1/usage."""
        return _json(await self._usage.report())

    async def _fence(self, leader_epoch: int) -> None:
        known = await self._ledger.fence(leader_epoch)
        if known > leader_epoch:
            message = f"a leader of epoch {known} has given orders here, yours is {leader_epoch}"
            raise StaleLeader(message, known=known)


def api_app(api: AgentApi, callers: CallerCheck) -> web.Application:
    """Build the application of the TLS port; nothing in it answers a stranger."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await _answer(request, handler, callers)
        route = request.match_info.route.resource
        known = route.canonical if route is not None else "none"
        AGENT_REQUESTS.labels(known, str(response.status)).inc()
        return response

    app = web.Application(middlewares=[guarded], client_max_size=MAX_BODY)
    app.router.add_post("/v1/bind", api.bind)
    app.router.add_post("/v1/releases", api.release)
    app.router.add_get("/v1/gpus", api.gpus)
    app.router.add_get("/v1/contexts", api.contexts)
    app.router.add_get("/v1/usage", api.usage)
    return app


async def _answer(
    request: web.Request, handler: Handler, callers: CallerCheck
) -> web.StreamResponse:
    try:
        await callers.check(request.headers.get("Authorization"))
        return await handler(request)
    except StaleLeader as error:
        return _problem(HTTPStatus.CONFLICT, error.reason, str(error), leader_epoch=error.known)
    except Refused as error:
        status = _STATUS_OF_REASON.get(error.reason, HTTPStatus.BAD_REQUEST)
        return _problem(status, error.reason, str(error))
    except Retry as error:
        return _problem(HTTPStatus.SERVICE_UNAVAILABLE, "Unavailable", str(error))
    except web.HTTPException as error:
        return _problem(HTTPStatus(error.status), error.reason.replace(" ", ""), error.reason)
    except Exception:
        log.exception("request failed", path=request.path)
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", "see the agent's log")


async def _decode(request: web.Request, kind: type[W]) -> W:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(str(error), reason=BAD_REQUEST) from error


def _refuse_malformed(asked: BindRequest | ReleaseOrder) -> None:
    """Refuse names that no object of Kubernetes has: they become URLs and directory names."""
    checks = (
        ("sessionUID", _SESSION_UID, asked.session_uid),
        ("sessionNamespace", _NAME, asked.session_namespace),
        ("sessionName", _NAME, asked.session_name),
        ("podName", _NAME, asked.pod_name),
        ("podUID", POD_UID, asked.pod_uid),
    )
    for field, pattern, value in checks:
        if not pattern.fullmatch(value):
            raise Refused(f"{field} {value!r} is malformed", reason=BAD_REQUEST)


class Probes:
    """The routes of the plain port."""

    def __init__(
        self, *, nvml: Nvml, ledger: Ledger, namespace: PidNamespace, rebuild: Rebuild
    ) -> None:
        self._nvml = nvml
        self._ledger = ledger
        self._namespace = namespace
        self._rebuild = rebuild
        self._serves = False

    def note_serving(self, *, node: str, port: int) -> None:
        """Be ready from now on, where nothing else speaks against it: orders are taken."""
        self._serves = True
        log.info("agent serves", node=node, port=port)

    async def healthz(self, _: web.Request) -> web.Response:
        """Fail only where a new process helps: the driver was upgraded under this one."""
        blind = await self._nvml.start()
        if blind is not None and blind.reason is BlindReason.DRIVER_MISMATCH:
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, "DriverMismatch", blind.detail)
        return web.Response(text="ok\n")

    async def readyz(self, _: web.Request) -> web.Response:
        """Fail while no release could come to a verdict, and say why."""
        blind = await self._nvml.start()
        reasons = [] if blind is None else [f"NVML: {blind.detail}"]
        doubt = await self._namespace.doubt()
        reasons += [] if doubt is None else [doubt]
        reasons += ["the ledger is being rebuilt"] if self._rebuild.needed else []
        reasons += [] if self._serves else ["no order is taken yet"]
        try:
            await self._ledger.check()
        except Retry as error:
            reasons.append(str(error))
        if reasons:
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, "NotReady", "; ".join(reasons))
        return web.Response(text="ok\n")

    async def metrics(self, _: web.Request) -> web.Response:
        """Give all metrics of this process."""
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def probe_app(probes: Probes) -> web.Application:
    """Build the application of the plain port."""
    app = web.Application()
    app.router.add_get("/healthz", probes.healthz)
    app.router.add_get("/readyz", probes.readyz)
    app.router.add_get("/metrics", probes.metrics)
    return app


def _json(words: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(words), content_type="application/json")


def _problem(
    status: HTTPStatus, reason: str, message: str, *, leader_epoch: int | None = None
) -> web.Response:
    problem = Problem(reason=reason, message=message, leader_epoch=leader_epoch)
    return web.Response(
        status=status, body=msgspec.json.encode(problem), content_type="application/json"
    )
