"""A kubelet that needs neither root nor containers: real processes, real Pods, no isolation.

    python -m tests.support.simulated_kubelet --node node-a --kubeconfig FILE --root DIR
        --address 127.0.0.11 --devices 2 --device-memory 80Gi --nvml-library-dir DIR

Below --root it keeps what an agent reads: cgroup/, proc/, nvml/ (the NVML simulator's state),
pod-resources/kubelet.sock and boot_id; and for people logs/. It prints `ready` when its Node
is registered and the socket answers. Every start is a reboot: what ran before is gone, by
SIGKILL too.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from tests.support.pod_resources_server import PodResourcesServer, Pods
from tests.support.simulated_node.api import Api, Login
from tests.support.simulated_node.node import (
    Devices,
    SimulatedNodeParts,
    device_uuid,
    keep_alive,
    plug_in_devices,
    register,
)
from tests.support.simulated_node.pod_run import PodRun
from tests.support.simulated_node.pod_spec import GPU
from tests.support.simulated_node.process_files import ProcessFiles, replace
from tests.support.simulated_node.quantity import parse_quantity

PASSED_ON = ("HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
"""What containers get of the kubelet's own environment, PATH beside; images bring the rest."""

HEARTBEAT_SECONDS = 10.0
"""kubelet renews its Lease as often."""

Object = dict[str, Any]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A kubelet without root and containers.")
    parser.add_argument("--node", required=True)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--address", default="127.0.0.1", help="of the node and all its Pods")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--device-memory", type=parse_quantity, default=80 * 2**30)
    parser.add_argument("--nvml-library-dir", type=Path, required=True)
    parser.add_argument("--heartbeat-seconds", type=float, default=HEARTBEAT_SECONDS)
    return parser.parse_args()


class Kubelet:
    """Leads every Pod that is bound to the node; a Pod is known by its uid."""

    def __init__(self, node: SimulatedNodeParts, tasks: asyncio.TaskGroup) -> None:
        self._node = node
        self._tasks = tasks
        self._runs: dict[str, PodRun] = {}

    def pod_resources(self) -> Pods:
        """Tell which GPU each Pod has, as the PodResources API tells it."""
        runs = self._runs.items()
        return {run.names: {GPU: self._node.devices.ids(uid)} for uid, run in runs}

    async def follow_pods(self) -> None:
        """Act on what the apiserver says of the node's Pods, for ever."""
        selector = f"spec.nodeName={self._node.name}"
        events = self._node.api.list_and_watch("/api/v1/pods", field_selector=selector)
        async for kind, item in events:
            if kind == "LISTED":
                self._compare(item["items"])
            elif kind == "DELETED":
                self._forget(item["metadata"]["uid"])
            else:
                self._see(item)

    def _compare(self, pods: list[Object]) -> None:
        for uid in self._runs.keys() - {pod["metadata"]["uid"] for pod in pods}:
            self._forget(uid)
        for pod in pods:
            self._see(pod)

    def _see(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if uid in self._runs:
            self._runs[uid].update(pod)
        else:
            self._runs[uid] = PodRun(pod, self._node)
            self._tasks.create_task(self._runs[uid].run(), name=pod["metadata"]["name"])

    def _forget(self, uid: str) -> None:
        if run := self._runs.pop(uid, None):
            run.vanish()


def build_node(asked: argparse.Namespace, api: Api) -> SimulatedNodeParts:
    """Lay out the root folder of a node that has just booted."""
    root = asked.root.resolve()
    shutil.rmtree(root / "groups", ignore_errors=True)
    for folder in ("logs", "groups", "pod-resources"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    boot_id = str(uuid.uuid4())
    replace(root / "boot_id", f"{boot_id}\n")
    files = ProcessFiles(root)
    files.write_boot_id(boot_id)
    simulated = plug_in_devices(
        root / "nvml", asked.node, count=asked.devices, memory_bytes=asked.device_memory
    )
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    programs = str(Path(sys.executable).parent)
    path = {"PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])}
    return SimulatedNodeParts(
        name=asked.node,
        address=asked.address,
        root=root,
        boot_id=boot_id,
        api=api,
        files=files,
        devices=Devices([device_uuid(asked.node, index) for index in range(asked.devices)]),
        environment=passed_on | path | simulated.environment(asked.nvml_library_dir.resolve()),
    )


async def serve_pod_resources(socket: Path, kubelet: Kubelet) -> None:
    """Answer on the socket until cancelled; the node is ready from then on."""
    async with PodResourcesServer(socket, kubelet.pod_resources):
        print("ready", flush=True)
        await asyncio.Event().wait()


async def run(asked: argparse.Namespace) -> None:
    """Be a node until cancelled; then its processes are gone, and its Pods not told."""
    async with Api(Login.read(asked.kubeconfig)) as api:
        node = build_node(asked, api)
        socket = node.root / "pod-resources" / "kubelet.sock"
        socket.unlink(missing_ok=True)
        await register(node)
        async with asyncio.TaskGroup() as tasks:
            kubelet = Kubelet(node, tasks)
            tasks.create_task(serve_pod_resources(socket, kubelet))
            tasks.create_task(keep_alive(node, period=asked.heartbeat_seconds))
            tasks.create_task(node.files.watch())
            tasks.create_task(kubelet.follow_pods())


async def run_until_sigterm(asked: argparse.Namespace) -> None:
    """Cancel `run` at SIGTERM or SIGINT."""
    running = asyncio.create_task(run(asked))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    asyncio.run(run_until_sigterm(arguments()))
