"""The gateway process: builds its objects, starts its tasks, drains and stops them.

Tasks: the lease; the event stream; beats to Redis; ends to Redis; the recount after a gap;
pings; the adaptive limit; the certificate, where there is one.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web

from gpusession import logs
from gpusession.api.frames import MAX_FRAME, TOKEN_AUDIENCE, CloseCode
from gpusession.certificate import ServerCertificate
from gpusession.errors import Misconfigured
from gpusession.gateway import requests
from gpusession.gateway.admission import Admission
from gpusession.gateway.client_api import ClientApi
from gpusession.gateway.clients import Clients
from gpusession.gateway.coalescer import BeatCoalescer
from gpusession.gateway.departures import Departures
from gpusession.gateway.drain import drain
from gpusession.gateway.following import Following
from gpusession.gateway.health import Health
from gpusession.gateway.lease import GatewayLease
from gpusession.gateway.listener import listening
from gpusession.gateway.recount import Recount
from gpusession.gateway.registry import ConnectionRegistry
from gpusession.gateway.rounds import Rounds
from gpusession.gateway.sockets import Sockets, Times
from gpusession.gateway.token_api import TokenApi
from gpusession.gateway.verified import VerifiedTokens
from gpusession.kube.client import KubeClient
from gpusession.kube.connection import KubeConnection
from gpusession.kube.reviews import BearerCheck, KubeReviews
from gpusession.lifetime import stop_on_signals
from gpusession.rules.admission import Bucket, Limits
from gpusession.settings import GatewaySettings
from gpusession.store.client import RedisClient
from gpusession.store.clients import TOKEN_LIFE, ClientStore
from gpusession.store.events import EventBus
from gpusession.store.gateways import GatewayRegistry
from gpusession.store.identities import IdentityStore
from gpusession.store.rates import Rate, RateStore, connected_rates

API_CONNECTIONS = 8
"""At kube-apiserver: two reviews for each new token, about 5 ms each."""

GARBAGE = 50_000
"""New objects between two looks for cycles; 700, Python's own, is one look for 100 beats."""

Task = Callable[[], Coroutine[Any, Any, None]]

log = structlog.get_logger(__name__)


async def run(settings: GatewaySettings) -> None:
    """Serve until SIGTERM, then drain. Raises Misconfigured where it must not run."""
    logs.configure(settings.log_level)
    stop = asyncio.Event()
    stop_on_signals(stop)
    async with AsyncExitStack() as stack:
        certificate = _certificate(settings)
        gateway = await _Gateway.build(settings, stack)
        host = str(settings.listen_host)
        await _serve_probes(stack, gateway.health(), host, settings.metrics_port)
        async with asyncio.TaskGroup() as tasks:
            parts = [*gateway.tasks(), *([certificate.run] if certificate else [])]
            running = [tasks.create_task(part()) for part in parts]
            async with listening(
                gateway.application(),
                host=host,
                port=settings.port,
                read_timeout=settings.read_timeout,
                idle_timeout=settings.idle_timeout,
                tls=certificate.context if certificate else None,
            ) as port:
                _look_for_garbage_seldom()
                log.info("gateway serves", port=port, gateway=gateway.lease.id)
                await stop.wait()
                gateway.sockets.is_draining = True
                await drain(
                    gateway.registry,
                    departures=gateway.departures,
                    lease=gateway.lease,
                    spread=settings.drain_spread,
                )
            for task in running:
                task.cancel()
        log.info("gateway stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gateway:
    """Every object of the process."""

    settings: GatewaySettings
    lease: GatewayLease
    registry: ConnectionRegistry
    departures: Departures
    following: Following
    coalescer: BeatCoalescer
    admission: Admission
    rounds: Rounds
    recount: Recount
    sockets: Sockets
    client_api: ClientApi
    token_api: TokenApi

    @classmethod
    async def build(cls, settings: GatewaySettings, stack: AsyncExitStack) -> "_Gateway":
        """Wire everything; nothing runs yet."""
        redis, bus, rates = await _stores(settings, stack)
        reviews = await _reviews(settings, stack)
        store, registry, wanted = ClientStore(redis), ConnectionRegistry(), asyncio.Event()
        lease = GatewayLease(GatewayRegistry(redis), name=settings.identity, ttl=settings.lease_ttl)
        lease.listen(
            lost=lambda: registry.shut_all(CloseCode.STORE_UNREACHABLE, "cut off from Redis"),
            renewed=wanted.set,
        )
        verified = VerifiedTokens(
            most=settings.verified_tokens, life=TOKEN_LIFE, monotonic=time.monotonic
        )
        rounds = Rounds(ping_period=settings.ping_period, silence_limit=settings.silence_limit)
        following = Following(
            bus, registry=registry, verified=verified, rounds=rounds, resumed=wanted.set
        )
        coalescer = BeatCoalescer(
            store,
            gateway=lambda: lease.id,
            tick=settings.beat_tick,
            batch=settings.beat_batch,
            most=settings.beats_waiting,
            patience=settings.answer_timeout,
        )
        identities = IdentityStore(redis)
        clients = Clients(
            store,
            identities=identities,
            coalescer=coalescer,
            verified=verified,
            lease=lease,
            is_gone=following.is_gone,
            answer_timeout=settings.answer_timeout,
        )
        admission = _admission(settings, rates, coalescer)
        departures = Departures(store, lease)
        return cls(
            settings=settings,
            lease=lease,
            registry=registry,
            departures=departures,
            following=following,
            coalescer=coalescer,
            admission=admission,
            rounds=rounds,
            recount=Recount(
                registry,
                clients=clients,
                lease=lease,
                departures=departures,
                rounds=rounds,
                wanted=wanted,
            ),
            sockets=Sockets(
                clients,
                registry=registry,
                rounds=rounds,
                admission=admission,
                lease=lease,
                departures=departures,
                times=Times(
                    hello=settings.hello_timeout,
                    silence=settings.silence_limit,
                    close_wait=settings.close_wait,
                ),
            ),
            client_api=ClientApi(
                clients,
                following=following,
                read_timeout=settings.read_timeout,
                close_wait=settings.close_wait,
            ),
            token_api=TokenApi(
                store,
                clients=clients,
                identities=identities,
                callers=BearerCheck(
                    reviews,
                    audience=TOKEN_AUDIENCE,
                    cache=settings.token_cache,
                    monotonic=time.monotonic,
                ),
                reviews=reviews,
                admission=admission,
                read_timeout=settings.read_timeout,
            ),
        )

    def tasks(self) -> tuple[Task, ...]:
        """List everything that runs as long as the process."""
        return (
            self.lease.run,
            self.following.run,
            self.coalescer.run,
            self.departures.run,
            self.recount.run,
            self.rounds.run,
            self.admission.run,
        )

    def application(self) -> web.Application:
        """Build the routes for clients."""
        guard = requests.guard(
            allowed_origins=self.settings.allowed_origins,
            write_timeout=self.settings.write_timeout,
        )
        application = web.Application(middlewares=[guard], client_max_size=MAX_FRAME)
        application.add_routes(
            [
                web.get("/v1/connect", self.sockets.connect),
                web.post("/v1/heartbeat", self.client_api.heartbeat),
                web.post("/v1/activity", self.client_api.activity),
                web.post("/v1/close", self.client_api.close),
                web.post("/v1/refresh", self.client_api.refresh),
                web.post("/v1/token", self.token_api.mint),
                web.delete("/v1/tokens", self.token_api.revoke),
            ]
        )
        return application

    def health(self) -> web.Application:
        """Build the routes for kubelet and Prometheus."""
        return Health(self._doubt).application()

    def _doubt(self) -> str | None:
        if self.sockets.is_draining:
            return "draining"
        if not self.lease.held:
            return "cut off from Redis"
        return None if self.following.started.is_set() else "the event stream is not followed yet"


def _look_for_garbage_seldom() -> None:
    """Spare a busy core a fifth of its time: what lives here lives long, and has few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)


def _certificate(settings: GatewaySettings) -> ServerCertificate | None:
    cert_file, key_file = settings.tls_cert_file, settings.tls_key_file
    if cert_file is None and key_file is None:
        return None
    if cert_file is None or key_file is None:
        raise Misconfigured("tls_cert_file and tls_key_file go together")
    return ServerCertificate(cert_file, key_file)


async def _stores(
    settings: GatewaySettings, stack: AsyncExitStack
) -> tuple[RedisClient, EventBus, RateStore]:
    url, patience = settings.redis_url.get_secret_value(), settings.redis_timeout
    redis = RedisClient(url, timeout=patience, connections=settings.connections)
    listening_only = RedisClient(url, timeout=patience, connections=1)
    await stack.enter_async_context(redis)
    await stack.enter_async_context(listening_only)
    rates = await stack.enter_async_context(connected_rates(url, redis, redis_timeout=patience))
    return redis, EventBus(listening_only), rates


async def _reviews(settings: GatewaySettings, stack: AsyncExitStack) -> KubeReviews:
    connection = KubeConnection(settings.kubeconfig, timeout=settings.kube_timeout)
    await connection.load()
    session = await stack.enter_async_context(connection.session(connections=API_CONNECTIONS))
    return KubeReviews(KubeClient(session, server=connection.server))


def _admission(settings: GatewaySettings, rates: RateStore, coalescer: BeatCoalescer) -> Admission:
    namespace = Bucket(per_second=settings.namespace_rate, burst=settings.namespace_burst)
    user = Bucket(per_second=settings.user_rate, burst=settings.user_burst)
    return Admission(
        rates,
        per_namespace=Rate(
            step=namespace.step, depth=namespace.depth, per_minute=settings.namespace_per_minute
        ),
        per_user=Rate(step=user.step, depth=user.depth, per_minute=settings.user_per_minute),
        limits=Limits(
            least=settings.connections_least,
            most=settings.connections_most,
            lag=settings.lag_limit,
            latency=settings.latency_limit,
        ),
        take_latency=coalescer.take_slowest,
    )


async def _serve_probes(stack: AsyncExitStack, app: web.Application, host: str, port: int) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, host, port).start()
