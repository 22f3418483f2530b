"""Pods on a simulated node for tests: made, watched and deleted with kubectl."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.control_plane import ControlPlane
from tests.support.processes import wait_until
from tests.support.simulated_node.program import KubeletProgram

NAMESPACE = "simulated-kubelet"


class Node:
    """A simulated node with shorthands for its Pods, all in one namespace."""

    def __init__(self, name: str, address: str, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.kubelet = KubeletProgram(name, plane=plane, folder=folder, address=address)
        self.root = self.kubelet.root

    def kubectl(self, *arguments: str, **keywords: Any) -> str:
        """Run kubectl in the tests' namespace and give its output."""
        return self.plane.kubectl(f"--namespace={NAMESPACE}", *arguments, **keywords).stdout

    def create(self, name: str, *args: str, policy: str = "Never", **metadata: Any) -> None:
        """Create a Pod on this node whose container takes these arguments."""
        container = {
            "name": "main",
            "image": "gpusession.dev/simulated-workload:test",
            "args": args,
            "resources": {"limits": {"nvidia.com/gpu": 1}},
        }
        spec = {"nodeName": self.kubelet.name, "restartPolicy": policy, "containers": [container]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name} | metadata}
        self.kubectl("create", "-f", "-", input=json.dumps(pod | {"spec": spec}))

    def delete(self, name: str, *, grace: int, force: bool = False) -> None:
        """Ask for the deletion of a Pod and do not wait for it."""
        asked = [f"--grace-period={grace}", f"--force={str(force).lower()}", "--wait=false"]
        self.kubectl("delete", "pod", name, *asked)

    def pod(self, name: str) -> dict[str, Any]:
        """Give the Pod as the apiserver has it, empty if it does not."""
        answer = self.kubectl("get", "pod", name, "--ignore-not-found", "-o", "json")
        return json.loads(answer) if answer else {}

    def wait(self, name: str, phase: str) -> dict[str, Any]:
        """Wait for a Pod's phase and give the Pod."""
        self._until(lambda: self.pod(name).get("status", {}).get("phase") == phase, phase)
        return self.pod(name)

    def wait_gone(self, name: str) -> None:
        """Wait for a Pod's object to be gone."""
        self._until(lambda: not self.pod(name), "gone")

    def start_pod(self, name: str, *args: str, **keywords: Any) -> list[int]:
        """Create a Pod, wait until it runs and give the pids that its cgroup lists."""
        self.create(name, *args, **keywords)
        self.wait(name, "Running")
        return self.pids(name)

    def pids(self, name: str) -> list[int]:
        """Give the pids that the Pod's cgroup lists."""
        return self.kubelet.pids(self.pod(name)["metadata"]["uid"])

    def _until(self, predicate: Callable[[], bool], what: str) -> None:
        wait_until(predicate, timeout=15, what=what, processes=[self.kubelet.process])
