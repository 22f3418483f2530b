"""The agent process: builds its objects, starts its tasks, stops them."""

import asyncio
import ssl
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import structlog
from aiohttp import web

from gpusession.agent.bind import Binder
from gpusession.agent.callers import CallerCheck
from gpusession.agent.gpu_view import GpuView
from gpusession.agent.inventory import Inventory
from gpusession.agent.ledger import Ledger
from gpusession.agent.nvml import Nvml
from gpusession.agent.observer import Observer
from gpusession.agent.pid_namespace import PidNamespace
from gpusession.agent.pod_check import PodCheck
from gpusession.agent.pod_resources import PodResources
from gpusession.agent.processes import PodProcesses
from gpusession.agent.rebuild import Rebuild
from gpusession.agent.release import Releaser
from gpusession.agent.server import AgentApi, Probes, api_app, probe_app
from gpusession.agent.usage import UsageWatch
from gpusession.certificate import ServerCertificate
from gpusession.errors import Misconfigured, Retry
from gpusession.kube.client import KubeClient
from gpusession.kube.connection import KubeConnection
from gpusession.kube.reader import KubeReader
from gpusession.kube.reviews import KubeReviews
from gpusession.lifetime import first_of, stop_on_signals
from gpusession.logs import configure
from gpusession.rules.ladder import Limits
from gpusession.rules.usage import UsageLimits
from gpusession.settings import AgentSettings
from gpusession.store.clearing import connected_clearer

DRAIN = timedelta(seconds=10)
"""SIGTERM: time for releases in flight; a fast one takes 0.8 s and clears for 5 s."""

API_CONNECTIONS = 8
"""At kube-apiserver: one read for each of 8 releases at a time takes about 10 ms."""

NAMESPACE_PROOF = timedelta(milliseconds=100)
"""A connect to a unix socket takes 0.05 ms; a release must not wait for a dead kubelet."""

log = structlog.get_logger(__name__)


async def run(settings: AgentSettings) -> None:
    """Serve until SIGTERM. Raises Misconfigured where the agent must not run."""
    _refuse_other_roots(settings)
    boot_id = _read_boot_id(settings.proc_root)
    certificate = ServerCertificate(settings.tls_cert_file, settings.tls_key_file)
    configure(settings.log_level)
    stopped = asyncio.Event()
    stop_on_signals(stopped)
    async with AsyncExitStack() as stack:
        reader, reviews = await _kube(settings, stack)
        clearer = await stack.enter_async_context(
            connected_clearer(settings.state_url, redis_timeout=settings.redis_timeout)
        )
        ledger = Ledger(settings.ledger_file, now=time.time)
        stack.push_async_callback(ledger.close)
        nvml = Nvml(call_timeout=settings.nvml_timeout)
        stack.push_async_callback(nvml.close)
        namespace = PidNamespace(settings.pod_resources_socket, timeout=NAMESPACE_PROOF)
        processes = PodProcesses(proc_root=settings.proc_root, cgroup_root=settings.cgroup_root)
        view = GpuView(nvml, processes)
        binder = Binder(
            node_name=settings.node_name,
            boot_id=boot_id,
            namespace=namespace,
            reader=reader,
            resources=PodResources(
                settings.pod_resources_socket, timeout=settings.pod_resources_timeout
            ),
            view=view,
            ledger=ledger,
        )
        releaser = Releaser(
            boot_id=boot_id,
            namespace=namespace,
            pods=PodCheck(reader, node_name=settings.node_name),
            view=view,
            processes=processes,
            ledger=ledger,
            clearer=clearer,
            state_timeout=settings.redis_timeout,
            limits=Limits(),
        )
        stack.push_async_callback(releaser.drain, within=DRAIN)
        callers = CallerCheck(
            reviews,
            allowed_caller=settings.allowed_caller,
            cache=settings.token_cache,
            monotonic=time.monotonic,
        )
        usage = UsageWatch(
            boot_id=boot_id,
            nvml=nvml,
            processes=processes,
            ledger=ledger,
            now=time.time,
            monotonic=time.monotonic,
            limits=UsageLimits(
                busy_percent=settings.busy_utilization_percent, window=settings.usage_window
            ),
        )
        api = AgentApi(
            binder=binder,
            releaser=releaser,
            inventory=Inventory(nvml=nvml, ledger=ledger),
            usage=usage,
            ledger=ledger,
        )
        rebuild = Rebuild(
            node_name=settings.node_name, boot_id=boot_id, reader=reader, ledger=ledger
        )
        probes = Probes(nvml=nvml, ledger=ledger, namespace=namespace, rebuild=rebuild)
        observer = Observer(
            boot_id=boot_id,
            namespace=namespace,
            view=view,
            processes=processes,
            ledger=ledger,
            usage=usage,
            period=settings.observe_period,
        )
        host = str(settings.listen_host)
        await nvml.start()
        await _serve(stack, probe_app(probes), host, settings.metrics_port)
        async with asyncio.TaskGroup() as tasks:
            rebuilding = tasks.create_task(rebuild.run(), name="rebuild")
            await first_of(stopped, rebuilding)
            if not stopped.is_set():
                await _catch_up(observer, releaser)
                await _serve(
                    stack, api_app(api, callers), host, settings.port, tls=certificate.context
                )
                probes.note_serving(node=settings.node_name, port=settings.port)
            running = [tasks.create_task(part.run()) for part in (observer, certificate)]
            await stopped.wait()
            for task in (rebuilding, *running):
                task.cancel()
        log.info("agent stops")


async def _catch_up(observer: Observer, releaser: Releaser) -> None:
    """See which Pods run before any release comes, and which of the released run again."""
    await observer.attempt()
    try:
        await releaser.resume()
    except Retry as error:
        log.warning("released Pods are not looked after", error=str(error))


def _refuse_other_roots(settings: AgentSettings) -> None:
    standard = (Path("/proc"), Path("/sys/fs/cgroup"))
    if (settings.proc_root, settings.cgroup_root) != standard and not settings.demo_mode:
        raise Misconfigured("proc_root and cgroup_root may be moved in demo mode only")


def _read_boot_id(proc_root: Path) -> str:
    try:
        return (proc_root / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    except OSError as error:
        raise Misconfigured(f"the boot id cannot be read: {error}") from error


async def _kube(settings: AgentSettings, stack: AsyncExitStack) -> tuple[KubeReader, KubeReviews]:
    connection = KubeConnection(settings.kubeconfig, timeout=settings.kube_timeout)
    await connection.load()
    session = await stack.enter_async_context(connection.session(connections=API_CONNECTIONS))
    client = KubeClient(session, server=connection.server)
    return KubeReader(client), KubeReviews(client)


async def _serve(
    stack: AsyncExitStack,
    app: web.Application,
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Listen until the stack closes, which first lets the requests in hand be answered."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=DRAIN.total_seconds())
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, host, port, ssl_context=tls).start()
