"""One bound Pod from first sight to the end of its object, as kubelet leads it."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

from tests.support.simulated_node import pod_spec, pod_status
from tests.support.simulated_node.containers import UNKNOWN_EXIT, Container, Ending
from tests.support.simulated_node.node import SimulatedNodeParts

Object = dict[str, Any]


class PodRun:
    """Runs a Pod's containers, reports how they stand, and ends them as the object says."""

    def __init__(self, pod: Object, node: SimulatedNodeParts) -> None:
        self._pod = pod
        self._node = node
        self._uid: str = pod["metadata"]["uid"]
        self._began = time.time()
        self._containers: list[Container] = []
        self._reported: Object = {}
        self._changed = asyncio.Event()
        self._news = asyncio.Event()
        self._ending = asyncio.Event()
        self._vanished = False
        self.update(pod)

    def update(self, pod: Object) -> None:
        """Take note of a newer version of the object."""
        self._pod = pod
        if "deletionTimestamp" in pod["metadata"]:
            self._ending.set()
        self._news.set()

    def vanish(self) -> None:
        """Take note that the object is gone."""
        self._vanished = True
        self._ending.set()
        self._news.set()

    @property
    def names(self) -> tuple[str, str]:
        """Namespace and name."""
        metadata = self._pod["metadata"]
        return metadata["namespace"], metadata["name"]

    async def run(self) -> None:
        """Lead the Pod until nothing is left of it on this node, and then in the apiserver."""
        if not pod_spec.has_ended(self._pod) and not self._ending.is_set():
            if pod_spec.is_unmanaged(self._pod):
                await self._report_unmanaged()
            else:
                await self._run_containers()
        await self._ending.wait()
        if not self._vanished:
            await self._node.api.delete(
                self._path, {"gracePeriodSeconds": 0, "preconditions": {"uid": self._uid}}
            )

    @property
    def _path(self) -> str:
        namespace, name = self.names
        return f"/api/v1/namespaces/{namespace}/pods/{name}"

    async def _run_containers(self) -> None:
        cgroup = pod_spec.pod_cgroup(self._pod)
        self._node.files.add_pod(cgroup)
        try:
            self._containers = self._make_containers(cgroup)
            runs = [asyncio.create_task(self._run_container(c)) for c in self._containers]
            helpers = [asyncio.create_task(self._keep_reporting())]
            helpers.append(asyncio.create_task(self._end_when_asked()))
            try:
                await asyncio.gather(*runs)
            finally:
                await _cancel(*runs, *helpers)
        finally:
            self._node.files.remove_pod(cgroup)
            self._node.devices.give_back(self._uid)
        await self._report(self._status())

    def _make_containers(self, cgroup: Path) -> list[Container]:
        node, env = self._node, dict(self._node.environment)
        if pod_spec.wants_gpu(self._pod):
            env["NVIDIA_VISIBLE_DEVICES"] = node.devices.assign(self._uid)
        containers = []
        for spec in self._pod["spec"]["containers"]:
            program = pod_spec.program(self._pod, spec, base=env, address=node.address)
            logs = node.root / "logs" / pod_spec.log_folder(self._pod) / spec["name"]
            containers.append(
                Container(
                    spec["name"],
                    program,
                    cgroup=cgroup,
                    logs=logs,
                    files=node.files,
                    groups=node.root / "groups",
                )
            )
        return containers

    async def _run_container(self, container: Container) -> None:
        if self._ended_in_reboot(container):
            self._changed.set()
            return
        await container.run(restarts_after=self._restarts_after, on_change=self._changed.set)

    def _ended_in_reboot(self, container: Container) -> bool:
        """Take over a container from before a reboot; True if the Pod does not want it back."""
        reported = self._pod["status"].get("containerStatuses", [])
        old = next((status for status in reported if status["name"] == container.name), None)
        if old is None or "containerID" not in old:
            return False
        container_id = old["containerID"].removeprefix("containerd://")
        ending = Ending(container_id, UNKNOWN_EXIT, began=self._began, ended=self._began)
        comes_back = self._restarts_after(UNKNOWN_EXIT)
        container.resume(ending, restarts=old["restartCount"] + comes_back)
        return not comes_back

    def _restarts_after(self, exit_code: int) -> bool:
        return not self._ending.is_set() and pod_spec.restarts_after(self._pod, exit_code)

    async def _end_when_asked(self) -> None:
        """SIGTERM at the deletion, SIGKILL after the grace or when the object vanishes."""
        await self._ending.wait()
        began_at = time.monotonic()
        if not self._vanished:
            for container in self._containers:
                container.stop()
        while not self._vanished:
            self._news.clear()
            grace = self._pod["metadata"].get("deletionGracePeriodSeconds", 0)
            left = began_at + grace - time.monotonic()
            if left <= 0:
                break
            with contextlib.suppress(TimeoutError):  # wait_for may lose a cancellation
                async with asyncio.timeout(left):
                    await self._news.wait()
        for container in self._containers:
            container.kill()

    async def _keep_reporting(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._report(self._status())

    def _status(self) -> Object:
        return pod_status.pod_status(
            self._pod, self._containers, address=self._node.address, began=self._began
        )

    async def _report_unmanaged(self) -> None:
        await self._report(
            pod_status.unmanaged_status(self._pod, address=self._node.address, began=self._began)
        )

    async def _report(self, status: Object) -> None:
        pod_status.keep_transitions(self._reported, status, now=time.time())
        if self._vanished or status == self._reported:
            return
        body = {"metadata": {"uid": self._uid}, "status": status}
        await self._node.api.patch(f"{self._path}/status", body)
        self._reported = status


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
