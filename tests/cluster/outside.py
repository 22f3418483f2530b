"""The nodes looked at from outside: the machine's own /proc, and raw NVML on each node.

Nothing here is the product's, and nothing asks Kubernetes.
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.cluster.node import RealNode
from tests.cluster.places import LIBRARY, STATE

_NVML = ("env", f"NVML_SIMULATOR_STATE={STATE}", f"LD_LIBRARY_PATH={LIBRARY}")
_NO_CAPABILITY = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
_POD = re.compile(r"/(gpusession-node-\d+)/kubepods\S*/pod([0-9a-f-]{36})\b")

_READ_GPUS = """
import json, pynvml
pynvml.nvmlInit()
holders, in_use = {}, []
for index in range(pynvml.nvmlDeviceGetCount()):
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    in_use.append(pynvml.nvmlDeviceGetMemoryInfo(gpu).used)
    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu):
        holders[process.pid] = process.usedGpuMemory
print(json.dumps([holders, in_use]))
"""


class Living(NamedTuple):
    """A process of a pod, on whichever node."""

    pid: int
    pod_uid: str
    command: str


def pod_processes() -> Iterator[Living]:
    """List what lives in pods of all nodes, by cgroup, in the machine's own pids."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked
            found = _POD.search((folder / "cgroup").read_text(encoding="utf-8"))
            if found is not None and not _is_dead(folder):
                command = (folder / "cmdline").read_text(encoding="utf-8", errors="replace")
                words = command.replace("\0", " ").strip()
                yield Living(int(folder.name), found.group(2), words)


def living(pod_uid: str) -> list[Living]:
    """List what lives of one pod; the sandbox is kubelet's own, and goes when kubelet says."""
    found = (process for process in pod_processes() if process.pod_uid == pod_uid)
    return [process for process in found if process.command != "/pause"]


def holders(node: RealNode) -> dict[str, int]:
    """Ask the real pynvml, without any capability, which pids of the node hold how much."""
    return _read_gpus(node)[0]


def memory_in_use(node: RealNode) -> list[int]:
    """Ask the same how many bytes of each GPU are in use, whoever holds them."""
    return _read_gpus(node)[1]


def _read_gpus(node: RealNode) -> tuple[dict[str, int], list[int]]:
    read = node.enter(*_NVML, *_NO_CAPABILITY, sys.executable, "-c", _READ_GPUS).stdout
    by_holder, in_use = json.loads(read)
    return by_holder, in_use


def _is_dead(folder: Path) -> bool:
    """Tell a zombie, which holds nothing and waits for its parent, by field 3 of its stat."""
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
