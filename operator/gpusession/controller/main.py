"""The controller's wiring: builds every object, starts every task, stops them in order.

It stands by until the Lease is its own, and only then looks at anything. Tasks of a leader:
the Lease's renewal; the agents' authority; Kopf's watch of Sessions; three reflectors (Pods,
Nodes, agents' Pods); the workers; the sweep. One HTTP server answers probes and metrics throughout.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from aiohttp import web

from gpusession import logs
from gpusession.agent_client import AgentClient
from gpusession.api.cluster import Namespace, Node, Pod
from gpusession.api.session import MODE_LABEL, OBSERVE, USE_LABEL
from gpusession.controller.actions import Performer
from gpusession.controller.agents import AgentDirectory
from gpusession.controller.authority import AgentAuthority
from gpusession.controller.health import Health
from gpusession.controller.intake import Intake
from gpusession.controller.leader import Leader, Periods
from gpusession.controller.liveness import LivenessWatch
from gpusession.controller.observer import Observer
from gpusession.controller.queue import DestroyQueue
from gpusession.controller.sessions import SessionCache
from gpusession.controller.sweep import Sweep
from gpusession.controller.watch import require_opened, watch_sessions
from gpusession.controller.worker import Worker
from gpusession.kube.client import KubeClient
from gpusession.kube.connection import KubeConnection
from gpusession.kube.leases import LeaseClient
from gpusession.kube.reader import KubeReader
from gpusession.kube.reflector import Reflector
from gpusession.kube.writer import KubeWriter
from gpusession.lifetime import first_of, stop_on_signals
from gpusession.rules.observation import Limits
from gpusession.settings import ControllerSettings
from gpusession.store.clearing import connected_clearer
from gpusession.store.client import RedisClient

log = structlog.get_logger()


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the one clock of this process


async def run(settings: ControllerSettings) -> None:
    """Stand by until the Lease is ours, then lead until SIGTERM or SIGINT, then drain.

    Raises Misconfigured before it starts, Deposed when another process leads.
    """
    logs.configure(settings.log_level)
    stop = asyncio.Event()
    stop_on_signals(stop)
    async with AsyncExitStack() as stack:
        connection = KubeConnection(settings.kubeconfig, timeout=settings.kube_timeout)
        await connection.load()
        session = await stack.enter_async_context(
            connection.session(connections=settings.api_connections)
        )
        client = KubeClient(session, server=connection.server)
        leader = Leader(
            LeaseClient(client, namespace=settings.namespace, name=settings.lease_name),
            identity=settings.identity,
            periods=Periods(
                lease=settings.lease_duration,
                renew=settings.lease_renew,
                retry=settings.lease_retry,
            ),
            clock=_now,
        )
        health = Health(stale_after=settings.watch_stale_after)
        await _serve(health.application(), settings, stack)
        authority = AgentAuthority(settings.agent_ca_file)
        acquiring = asyncio.create_task(leader.acquire(), name="acquire")
        await first_of(stop, acquiring)
        if stop.is_set():
            acquiring.cancel()
            return
        await acquiring
        stack.push_async_callback(leader.resign)
        reign = _Reign(settings, connection, client, leader, health, authority)
        await reign.run(stop, stack)
        log.info("controller stopped")


@dataclass(frozen=True, slots=True)
class _Reign:
    """Everything that only a leader has and does."""

    settings: ControllerSettings
    connection: KubeConnection
    client: KubeClient
    leader: Leader
    health: Health
    authority: AgentAuthority

    async def run(self, stop: asyncio.Event, stack: AsyncExitStack) -> None:
        """Build the objects, start the tasks, and work until `stop`."""
        settings, client, reader = self.settings, self.client, KubeReader(self.client)
        sessions = SessionCache()
        queue = DestroyQueue(retry_base=settings.retry_base, retry_cap=settings.retry_cap)
        stack.callback(queue.close)
        intake = Intake(sessions, queue)
        directory = AgentDirectory(intake.agent_changed)
        pods, nodes, agent_pods = self._reflectors(intake, directory)
        observed = Reflector(
            client, "/api/v1/namespaces", kind=Namespace, selector=f"{MODE_LABEL}={OBSERVE}"
        )
        agents = AgentClient(
            directory.locate,
            tls=self.authority.context,
            server_name=settings.agent_server_name,
            token_file=settings.agent_token_file,
            timeout=settings.agent_timeout,
        )
        stack.push_async_callback(agents.close)
        url, wait = settings.redis_url.get_secret_value(), settings.redis_timeout
        redis = await stack.enter_async_context(RedisClient(url, timeout=wait))
        listener = await stack.enter_async_context(RedisClient(url, timeout=wait, connections=1))
        clearer = connected_clearer(settings.state_url, redis_timeout=settings.redis_timeout)
        liveness = LivenessWatch(
            settings, redis, listener, sessions=sessions, intake=intake, agents=agents, clock=_now
        )
        worker = Worker(
            queue=queue,
            sessions=sessions,
            observer=Observer(
                reader,
                pods=pods,
                nodes=nodes,
                locate=directory.locate,
                lives=liveness.lives.look,
                observes=lambda namespace: observed.get("", namespace) is not None,
            ),
            performer=Performer(
                writer=KubeWriter(client),
                agents=agents,
                records=liveness.records,
                clearer=await stack.enter_async_context(clearer),
                sessions=sessions,
                leader=self.leader,
                clock=_now,
            ),
            clock=_now,
            limits=Limits(pending_report_after=settings.pending_report_after),
            intake=intake,
        )
        sweep = Sweep(
            reader=reader,
            sessions=sessions,
            intake=intake,
            records=liveness.records,
            rebind=worker.rebind,
            period=settings.resync_period,
            rebind_period=settings.rebind_period,
        )
        synced = (pods.synced, nodes.synced, agent_pods.synced, observed.synced)
        opened = asyncio.Event()
        self.health.reign(sweep, synced=(*synced, opened))
        async with asyncio.TaskGroup() as tasks:
            following = [
                tasks.create_task(part())
                for part in (
                    self.leader.keep,
                    self.authority.run,
                    pods.run,
                    nodes.run,
                    agent_pods.run,
                    observed.run,
                )
            ]
            starting = tasks.create_task(self._start(sweep, sessions, synced))
            await first_of(stop, starting)
            if not stop.is_set():
                following.append(tasks.create_task(sweep.run()))
                following += [tasks.create_task(part()) for part in liveness.tasks]
                following += [tasks.create_task(worker.run()) for _ in range(settings.workers)]
                opening = require_opened(opened, within=settings.watch_open_timeout)
                following.append(tasks.create_task(opening))
                log.info("controller started", workers=settings.workers, epoch=self.leader.epoch)
                await watch_sessions(
                    self.connection,
                    intake=intake,
                    queue=queue,
                    identity=settings.identity,
                    opened=opened,
                    stop=stop,
                    drain_timeout=settings.drain_timeout,
                )
            for task in (*following, starting):
                task.cancel()

    async def _start(
        self, sweep: Sweep, sessions: SessionCache, synced: tuple[asyncio.Event, ...]
    ) -> None:
        """Have seen everything once, and be the latest of all leaders, before the first act."""
        for event in synced:
            await event.wait()
        while not await sweep.try_once():
            await asyncio.sleep(self.settings.lease_retry.total_seconds())
        latest = max((s.status.leader_epoch for s in sessions), default=0)
        if latest >= self.leader.epoch:
            await self.leader.raise_epoch(latest + 1)

    def _reflectors(
        self, intake: Intake, directory: AgentDirectory
    ) -> tuple[Reflector[Pod], Reflector[Node], Reflector[Pod]]:
        pods = Reflector(self.client, "/api/v1/pods", kind=Pod, selector=USE_LABEL)
        pods.listen(intake.pod_changed)
        nodes = Reflector(self.client, "/api/v1/nodes", kind=Node)
        nodes.listen(intake.node_changed)
        path = f"/api/v1/namespaces/{self.settings.agent_namespace}/pods"
        agents = Reflector(self.client, path, kind=Pod, selector=self.settings.agent_selector)
        agents.listen(directory.note)
        return pods, nodes, agents


async def _serve(
    application: web.Application, settings: ControllerSettings, stack: AsyncExitStack
) -> None:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, str(settings.listen_host), settings.metrics_port).start()
