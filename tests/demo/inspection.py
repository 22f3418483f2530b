"""Looks at the world from outside the product: raw NVML, Redis, /proc and kubectl.

Nothing here imports the operator, so it cannot repeat the operator's mistakes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import redis
from tests.support import nvml_simulator
from tests.support.control_plane import ControlPlane
from tests.support.operator_stack import Node
from tests.support.processes import start_time

NVML_SCRIPT = """
import json, pynvml
pynvml.nvmlInit()
found = []
for index in range(pynvml.nvmlDeviceGetCount()):
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    used = pynvml.nvmlDeviceGetMemoryInfo(handle).used
    holders = [
        [p.pid, p.usedGpuMemory]
        for listed in (
            pynvml.nvmlDeviceGetComputeRunningProcesses,
            pynvml.nvmlDeviceGetGraphicsRunningProcesses,
        )
        for p in listed(handle)
    ]
    found.append([pynvml.nvmlDeviceGetUUID(handle), used, holders])
print(json.dumps(found))
"""


class Gpu(NamedTuple):
    """One device as NVML shows it: bytes used, and who holds how much."""

    uuid: str
    used_bytes: int
    holders: dict[int, int]


class Born(NamedTuple):
    """A process that cannot be confused with a later one of the same pid."""

    pid: int
    start_time: int

    @property
    def lives(self) -> bool:
        """Tell whether this very process still runs."""
        return start_time(self.pid) == self.start_time


def gpus(node: Node, library: Path) -> list[Gpu]:
    """Ask NVML, through the real pynvml in a process of its own."""
    environment = dict(os.environ) | nvml_simulator.environment(node.nvml_state, library)
    done = subprocess.run(
        [sys.executable, "-c", NVML_SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Gpu(uuid, used, dict(holders)) for uuid, used, holders in json.loads(done.stdout)]


def processes_of_pods(node: Node, pod_uids: Iterable[str]) -> set[Born]:
    """Read which processes the node's cgroups list for these Pods."""
    found = set()
    for uid in pod_uids:
        for listing in (node.root / "cgroup").rglob(f"pod{uid}/**/cgroup.procs"):
            for text in listing.read_text().split():
                born = start_time(int(text))
                if born is not None:
                    found.add(Born(int(text), born))
    return found


def keys(url: str, pattern: str = "*") -> set[str]:
    """List the keys of a Redis."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return set(client.scan_iter(match=pattern, count=1000))


def objects(plane: ControlPlane, kind: str, namespace: str) -> list[dict[str, Any]]:
    """List objects with kubectl."""
    done = plane.kubectl("get", kind, "-n", namespace, "-o", "json")
    return json.loads(done.stdout)["items"]
