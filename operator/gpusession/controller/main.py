"""The controller's wiring: builds every object, starts every task, stops them in order.

Tasks: Kopf's watch of Sessions; three reflectors (Pods, Nodes, agents' Pods); the workers;
the sweep; one HTTP server for probes and metrics.
"""

import asyncio
import ssl
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import structlog
from aiohttp import web

from gpusession import logs
from gpusession.agent_client import AgentClient
from gpusession.api.cluster import Node, Pod
from gpusession.api.session import USE_LABEL
from gpusession.controller.actions import Performer
from gpusession.controller.agents import AgentDirectory
from gpusession.controller.health import Health
from gpusession.controller.intake import Intake
from gpusession.controller.observer import Observer
from gpusession.controller.queue import DestroyQueue
from gpusession.controller.records import RecordKeeper
from gpusession.controller.sessions import SessionCache
from gpusession.controller.sweep import Sweep
from gpusession.controller.watch import watch_sessions
from gpusession.controller.worker import Worker
from gpusession.errors import Misconfigured
from gpusession.kube.client import KubeClient
from gpusession.kube.connection import KubeConnection
from gpusession.kube.reader import KubeReader
from gpusession.kube.reflector import Reflector
from gpusession.kube.writer import KubeWriter
from gpusession.rules.observation import Limits
from gpusession.settings import ControllerSettings
from gpusession.store.clearing import StateClearer
from gpusession.store.client import RedisClient
from gpusession.store.sessions import SessionStore

log = structlog.get_logger()


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the one clock of this process


async def run(settings: ControllerSettings) -> None:
    """Run until SIGTERM or SIGINT, then drain. Raises Misconfigured before it starts."""
    logs.configure(settings.log_level)
    async with AsyncExitStack() as stack:
        connection = KubeConnection(settings.kubeconfig, timeout=settings.kube_timeout)
        await connection.load()
        session = await stack.enter_async_context(
            connection.session(connections=settings.api_connections)
        )
        client = KubeClient(session, server=connection.server)
        reader = KubeReader(client)

        sessions = SessionCache()
        queue = DestroyQueue(retry_base=settings.retry_base, retry_cap=settings.retry_cap)
        stack.callback(queue.close)
        intake = Intake(sessions, queue)
        directory = AgentDirectory(intake.agent_changed)

        pods = Reflector(client, "/api/v1/pods", kind=Pod, selector=USE_LABEL)
        pods.listen(intake.pod_changed)
        nodes = Reflector(client, "/api/v1/nodes", kind=Node)
        nodes.listen(intake.node_changed)
        agent_pods = Reflector(
            client,
            f"/api/v1/namespaces/{settings.agent_namespace}/pods",
            kind=Pod,
            selector=settings.agent_selector,
        )
        agent_pods.listen(directory.note)

        agents = AgentClient(
            directory.locate,
            tls=_agent_tls(settings),
            server_name=settings.agent_server_name,
            token_file=settings.agent_token_file,
            timeout=settings.agent_timeout,
        )
        stack.push_async_callback(agents.close)
        store = await stack.enter_async_context(
            RedisClient(settings.redis_url.get_secret_value(), timeout=settings.redis_timeout)
        )
        records = RecordKeeper(SessionStore(store), sessions)
        worker = Worker(
            queue=queue,
            sessions=sessions,
            observer=Observer(reader, pods=pods, nodes=nodes),
            performer=Performer(
                writer=KubeWriter(client),
                agents=agents,
                records=records,
                clearer=await _clearer(settings, stack),
                sessions=sessions,
                clock=_now,
            ),
            clock=_now,
            limits=Limits(pending_report_after=settings.pending_report_after),
        )
        sweep = Sweep(
            reader=reader,
            sessions=sessions,
            intake=intake,
            records=records,
            rebind=worker.rebind,
            period=settings.resync_period,
            rebind_period=settings.rebind_period,
        )
        synced = (pods.synced, nodes.synced, agent_pods.synced)
        health = Health(sweep, synced=synced, stale_after=settings.watch_stale_after)
        await _serve(health.application(), settings, stack)

        async with asyncio.TaskGroup() as background:
            following = [
                background.create_task(task.run()) for task in (pods, nodes, agent_pods, sweep)
            ]
            for event in synced:
                await event.wait()
            working = [background.create_task(worker.run()) for _ in range(settings.workers)]
            log.info("controller started", workers=settings.workers)

            await watch_sessions(
                connection, intake=intake, queue=queue, drain_timeout=settings.drain_timeout
            )
            for task in (*working, *following):
                task.cancel()
        log.info("controller stopped")


def _agent_tls(settings: ControllerSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(settings.agent_ca_file))
    except OSError as error:
        raise Misconfigured(f"agent_ca_file {settings.agent_ca_file}: {error}") from error


async def _clearer(settings: ControllerSettings, stack: AsyncExitStack) -> StateClearer | None:
    if settings.state_redis_url is None:
        return None
    url = settings.state_redis_url.get_secret_value()
    client = RedisClient(url, timeout=settings.redis_timeout)
    return StateClearer(await stack.enter_async_context(client))


async def _serve(
    application: web.Application, settings: ControllerSettings, stack: AsyncExitStack
) -> None:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, str(settings.listen_host), settings.metrics_port).start()
