"""The agent's objects, joined as its main.py joins them, on a node of real processes.

NVML is the simulator behind the real pynvml, cgroups and /proc entries are those that the
simulated kubelet keeps, as is its PodResources API; kube-apiserver is the fake one. Only
the wall clock is ours.
"""

import asyncio
import sys
import time
import uuid
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import aiohttp
from tests.support.fake_apiserver import FakeApiserver
from tests.support.nvml_simulator import SimulatedNode, work
from tests.support.pod_resources_server import PodResourcesServer
from tests.support.simulated_node.containers import Program, ShimProcess
from tests.support.simulated_node.process_files import ProcessFiles
from tests.support.toolchain import REPOSITORY

from gpusession.agent.bind import Binder
from gpusession.agent.gpu_view import GpuView
from gpusession.agent.ledger import Ledger
from gpusession.agent.nvml import Nvml
from gpusession.agent.observer import Observer
from gpusession.agent.pid_namespace import PidNamespace
from gpusession.agent.pod_check import PodCheck
from gpusession.agent.pod_resources import PodResources
from gpusession.agent.processes import PodProcesses
from gpusession.agent.rebuild import Rebuild
from gpusession.agent.release import Releaser
from gpusession.agent.usage import UsageWatch
from gpusession.api.release import BindRequest, ReleaseOrder
from gpusession.kube.client import KubeClient
from gpusession.kube.reader import KubeReader
from gpusession.kube.reviews import KubeReviews
from gpusession.rules.ladder import Limits
from gpusession.rules.usage import UsageLimits

NODE = "node-a"
GPU = "GPU-5a2c0000-0000-4000-8000-000000000000"
OTHER_GPU = "GPU-5a2c0000-0000-4000-8000-000000000001"
GIB = 2**30

PATIENT = {
    "resolve": timedelta(milliseconds=300),
    "sigkill": timedelta(milliseconds=300),
    "verify": timedelta(milliseconds=800),
}
"""Three times the real limits: what a machine must not be slow enough to break."""

REAL = {name: getattr(Limits(), name) for name in PATIENT}
"""For tests that wait for a limit to be over."""

USAGE_LIMITS = UsageLimits(
    window=timedelta(seconds=0.5),
    longest_span=timedelta(seconds=5),
    longest_silence=timedelta(seconds=5),
)
"""A window that a test can wait for, and gaps that no slow machine makes by itself."""


@dataclass
class RunningPod:
    """A Pod with one container, and where its processes are listed."""

    name: str
    uid: str
    cgroup: Path
    container_id: str
    shim: ShimProcess
    log: Path


class AgentRig:
    """One node and its agent; the with block ends all processes."""

    def __init__(self, node: SimulatedNode, root: Path) -> None:
        self.node = node
        self.root = root
        self.apiserver = FakeApiserver()
        self.files = ProcessFiles(root)
        self.socket = root / "pr.sock"
        self.given: dict[tuple[str, str], dict[str, list[str]]] = {}
        self.boot_id = "boot-1"
        self.now = 1_000_000.0
        self.stepped = 0.0
        self._kept = AsyncExitStack()
        self._agent = AsyncExitStack()
        (root / "groups").mkdir()
        self.files.write_boot_id(self.boot_id)

    async def __aenter__(self) -> Self:
        await self._kept.enter_async_context(self.apiserver)
        await self._kept.enter_async_context(PodResourcesServer(self.socket, lambda: self.given))
        watching = asyncio.create_task(self.files.watch())
        self._kept.push_async_callback(_cancelled, watching)
        await self.start_agent()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._agent.aclose()
        await self._kept.aclose()

    async def start_agent(self, *, nvml_timeout: float = 0.5, **limits: timedelta) -> None:
        """Build the agent's objects, after letting those before them go."""
        await self._agent.aclose()
        self._agent = AsyncExitStack()
        session = await self._agent.enter_async_context(aiohttp.ClientSession())
        kube = KubeClient(session, server=self.apiserver.url)
        self.reader, self.reviews = KubeReader(kube), KubeReviews(kube)
        self.ledger = Ledger(self.root / "ledger.sqlite", now=lambda: self.now)
        self._agent.push_async_callback(self.ledger.close)
        self.nvml = Nvml(call_timeout=timedelta(seconds=nvml_timeout))
        self._agent.push_async_callback(self.nvml.close)
        await self.nvml.start()
        self.namespace = PidNamespace(self.socket, timeout=timedelta(milliseconds=100))
        self.processes = PodProcesses(
            proc_root=self.root / "proc", cgroup_root=self.root / "cgroup"
        )
        self.rebuild = Rebuild(
            node_name=NODE, boot_id=self.boot_id, reader=self.reader, ledger=self.ledger
        )
        view = GpuView(self.nvml, self.processes)
        self.binder = Binder(
            node_name=NODE,
            boot_id=self.boot_id,
            namespace=self.namespace,
            reader=self.reader,
            resources=PodResources(self.socket, timeout=timedelta(seconds=2)),
            view=view,
            ledger=self.ledger,
        )
        self.releaser = Releaser(
            boot_id=self.boot_id,
            namespace=self.namespace,
            pods=PodCheck(self.reader, node_name=NODE),
            view=view,
            processes=self.processes,
            ledger=self.ledger,
            clearer=None,
            state_timeout=timedelta(seconds=5),
            limits=Limits(**(PATIENT | limits)),
        )
        self._agent.push_async_callback(self.releaser.drain, within=timedelta())
        self.usage = UsageWatch(
            boot_id=self.boot_id,
            nvml=self.nvml,
            processes=self.processes,
            ledger=self.ledger,
            now=lambda: time.time() + self.stepped,
            monotonic=time.monotonic,
            limits=USAGE_LIMITS,
        )
        self.observer = Observer(
            boot_id=self.boot_id,
            namespace=self.namespace,
            view=view,
            processes=self.processes,
            ledger=self.ledger,
            usage=self.usage,
            period=timedelta(seconds=5),
        )

    async def lose_ledger(self) -> None:
        """Stop the agent, remove its ledger's files, start it again."""
        await self._agent.aclose()
        for file in self.root.glob("ledger.sqlite*"):
            file.unlink()
        await self.start_agent()

    async def start_pod(
        self, name: str = "pod", *args: str, use: str | None = "exclusive", memory: str = "6Gi"
    ) -> RunningPod:
        """Start a Pod with the workload of the harness, and return when it holds memory."""
        uid = str(uuid.uuid4())
        self.apiserver.add_pod(name, uid=uid, node=NODE, use=use)
        self.given.setdefault(("default", name), {})
        cgroup = Path("rc-node-1/kubepods/burstable") / f"pod{uid}"
        self.files.add_pod(cgroup)
        pod = self._start_container(name, uid, cgroup, *args, memory=memory)
        while not (pod.log.exists() and "ready" in pod.log.read_text()):
            assert not pod.shim.has_exited, pod.log.read_text()
            await asyncio.sleep(0.005)
        self.files.refresh(pod.container_id)
        return pod

    def restart(self, pod: RunningPod) -> RunningPod:
        """Start another container in the Pod, as kubelet does with one that has ended."""
        return self._start_container(pod.name, pod.uid, pod.cgroup, memory="6Gi")

    def _start_container(
        self, name: str, uid: str, cgroup: Path, *args: str, memory: str
    ) -> RunningPod:
        container_id = uuid.uuid4().hex * 2
        log = self.root / f"{name}-{container_id[:8]}.log"
        argv = [sys.executable, "-m", "tests.support.workload", "--memory", memory, *args]
        environment = {
            "PYTHONPATH": str(REPOSITORY),
            "NVIDIA_VISIBLE_DEVICES": GPU,
            "NVML_SIMULATOR_STATE": str(self.node.state_dir),
        }
        program = Program(argv, environment, str(self.root), says_ready=True)
        shim = ShimProcess(program, log=log, groups=self.root / "groups")
        self._kept.push_async_callback(_ended, shim)
        self.files.add(container_id, cgroup=cgroup / container_id, shim=shim.pid)
        return RunningPod(name, uid, cgroup, container_id, shim, log)

    def give(self, pod: RunningPod, *ids: str) -> None:
        """Have kubelet say that it has given these devices to the Pod."""
        self.given["default", pod.name] = {"nvidia.com/gpu": list(ids)}

    def work(self, pod: RunningPod, percent: int) -> None:
        """Let the Pod's processes use their GPU by so many percent each from now on."""
        for pid in self.pids(pod):
            for row in (self.node.state_dir / "allocations").glob(f"{pid}-*"):
                work(row, percent)

    def pids(self, pod: RunningPod) -> list[int]:
        """Give the pids that the Pod's container lists."""
        listed = self.root / "cgroup" / pod.cgroup / pod.container_id / "cgroup.procs"
        return [int(pid) for pid in listed.read_text().split()]

    @staticmethod
    def bind_request(pod: RunningPod, session_uid: str = "session-1") -> BindRequest:
        """Ask for the Pod."""
        return BindRequest(
            session_uid=session_uid,
            session_namespace="default",
            session_name="session",
            pod_name=pod.name,
            pod_uid=pod.uid,
        )

    @staticmethod
    def order(pod: RunningPod, session_uid: str = "session-1", **more: Any) -> ReleaseOrder:
        """Order the Session's release."""
        return ReleaseOrder(
            session_uid=session_uid,
            session_namespace="default",
            session_name="session",
            pod_name=pod.name,
            pod_uid=pod.uid,
            **more,
        )


def owner(uid: str, phase: str = "Active") -> dict[str, Any]:
    """Give the Session that a bind of the rig names, as the apiserver knows it."""
    return {
        "metadata": {"name": "session", "namespace": "default", "uid": uid},
        "spec": {"podRefs": [{"name": "pod"}]},
        "status": {"phase": phase},
    }


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _ended(shim: ShimProcess) -> None:
    deadline = time.monotonic() + 5
    while not shim.has_exited and time.monotonic() < deadline:
        shim.kill()
        with suppress(TimeoutError):
            await asyncio.wait_for(shim.wait(), 0.5)
