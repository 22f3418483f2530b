"""The real cluster behaves as one: it runs pods, shows GPUs, loses nodes, leaves nothing.

Not among the default tests: `pytest tests/cluster`, as root. All of them share one cluster, and
the last one takes it down (conftest.py).
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import outside
from tests.cluster.images import WORKLOAD
from tests.cluster.places import STATE
from tests.cluster.real_cluster import FOLDER, RealCluster
from tests.support.processes import wait_until
from tests.support.toolchain import REPOSITORY

pytestmark = pytest.mark.timeout(180)

GIB = 2**30
POD_SECONDS = 60
BOOT_ID = "/proc/sys/kernel/random/boot_id"
Object = dict[str, Any]
StartPod = Callable[..., Object]

HOLDERS_WITHOUT_PYNVML = """
import ctypes, json
nvml = ctypes.CDLL("libnvidia-ml.so.1")
nvml.nvmlInit_v2()
class Entry(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint), ("bytes", ctypes.c_ulonglong), ("instances", ctypes.c_uint * 2)
    ]
held = {}
for index in range(8):
    gpu, count, entries = ctypes.c_void_p(), ctypes.c_uint(9), (Entry * 9)()
    nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(gpu))
    rc = nvml.nvmlDeviceGetComputeRunningProcesses_v3(gpu, ctypes.byref(count), entries)
    assert rc == 0, rc
    held |= {entry.pid: entry.bytes for entry in entries[: count.value]}
print(json.dumps(held))
"""

ASK_THE_APISERVER = """
import json, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
request = urllib.request.Request("https://kubernetes.default/version")
request.add_header("Authorization", "Bearer " + open(folder + "/token").read())
tls = ssl.create_default_context(cafile=folder + "/ca.crt")
print(json.load(urllib.request.urlopen(request, context=tls, timeout=10))["gitVersion"])
"""


@pytest.fixture
def start_pod(cluster: RealCluster) -> Iterator[StartPod]:
    """Give a way to start a pod of the workload image; all are gone after the test."""
    names: list[str] = []

    def start(name: str, spec: Object, **container: Any) -> Object:
        main = {"name": "main", "image": WORKLOAD, "imagePullPolicy": "Never", **container}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "containers": [main],
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 2,
                **spec,
            },
        }
        names.append(name)
        cluster.kubectl("create", "--filename=-", input=json.dumps(pod))
        wait_until(
            lambda: phase(cluster, name) not in {"", "Pending"},
            timeout=POD_SECONDS,
            what=f"pod {name} to start",
            period=0.2,
        )
        return json.loads(cluster.kubectl("get", "pod", name, "--output=json").stdout)

    yield start
    if names:
        cluster.kubectl("delete", "pod", "--ignore-not-found", *names)


def phase(cluster: RealCluster, pod: str) -> str:
    """Read a pod's phase; empty where there is no such pod."""
    query = "--output=jsonpath={.status.phase}"
    return cluster.kubectl("get", "pod", pod, query, check=False).stdout


def printed(cluster: RealCluster, pod: str) -> str:
    """Wait for a pod to end well and read what it printed."""
    wait_until(
        lambda: phase(cluster, pod) in {"Succeeded", "Failed"},
        timeout=POD_SECONDS,
        what=f"pod {pod} to end",
        period=0.2,
    )
    log = cluster.kubectl("logs", pod).stdout
    assert phase(cluster, pod) == "Succeeded", log
    return log.strip()


def boot_id(cluster: RealCluster, node: str) -> str:
    """Read which boot of a node its kubelet told of."""
    query = "--output=jsonpath={.status.nodeInfo.bootID}"
    return cluster.kubectl("get", "node", node, query).stdout


def holders(cluster: RealCluster, node: str) -> dict[str, int]:
    """Ask NVML on the node itself who holds memory there."""
    return outside.holders(cluster.nodes[node])


def start_gpu_pod(start_pod: StartPod, name: str, **spec: Any) -> Object:
    """Start a pod that holds 6 GiB of one GPU, as an ordinary user."""
    return start_pod(
        name,
        {"securityContext": {"runAsUser": 1000, "runAsNonRoot": True}, **spec},
        args=["--memory=6Gi"],
        resources={"limits": {"nvidia.com/gpu": 1}},
    )


def wait_for_holder(cluster: RealCluster, node: str) -> str:
    """Wait until exactly one process holds memory on the node, and give its pid there."""
    wait_until(
        lambda: len(holders(cluster, node)) == 1,
        timeout=POD_SECONDS,
        what="a process that holds memory",
        period=0.2,
    )
    [(pid, held)] = holders(cluster, node).items()
    assert held == 6 * GIB
    return pid


def command_lines() -> Iterator[str]:
    """Read how each process of the machine was called."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield file.read_text(errors="replace")


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_pods_reach_the_apiserver_by_its_name(
    cluster: RealCluster, start_pod: StartPod, node: str
) -> None:
    """DNS, the Service's address, routes between nodes and the ServiceAccount's token all work."""
    command = ["python3", "-c", ASK_THE_APISERVER]
    start_pod(f"asks-from-{node}", {"nodeName": node}, command=command)

    assert printed(cluster, f"asks-from-{node}") == "v1.36.3"


def test_held_memory_is_shown_with_the_pid_of_the_node(
    cluster: RealCluster, start_pod: StartPod
) -> None:
    """The scheduler places it; NVML names a process of that very pod; its end frees the memory."""
    pod = start_gpu_pod(start_pod, "holds")
    node, uid = pod["spec"]["nodeName"], pod["metadata"]["uid"]

    pid = wait_for_holder(cluster, node)
    assert f"/pod{uid}/" in cluster.enter(node, "cat", f"/proc/{pid}/cgroup").stdout

    cluster.kubectl("delete", "pod", "holds")
    assert holders(cluster, node) == {}


def test_pod_in_the_pid_namespace_of_the_node_sees_it_as_well(
    cluster: RealCluster, start_pod: StartPod
) -> None:
    """An agent that shares the node's pids reads the same, with all its capabilities dropped.

    The runtime class brings it NVML, as NVIDIA's does.
    """
    node = start_gpu_pod(start_pod, "holds")["spec"]["nodeName"]
    pid = wait_for_holder(cluster, node)

    start_pod(
        "looks",
        {"nodeName": node, "hostPID": True, "runtimeClassName": "nvidia"},
        command=["python3", "-c", HOLDERS_WITHOUT_PYNVML],
        env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}],
        securityContext={"capabilities": {"drop": ["ALL"]}},
    )

    assert json.loads(printed(cluster, "looks")) == {pid: 6 * GIB}


def test_node_without_power_is_missed_and_comes_back(
    cluster: RealCluster, start_pod: StartPod
) -> None:
    """Its lease runs out, its GPUs hold nothing any more, and after a boot it takes pods.

    Kubelet and containers are told one boot id, which is new.
    """
    before = boot_id(cluster, "node-2")
    start_gpu_pod(start_pod, "holds", nodeName="node-2")
    wait_for_holder(cluster, "node-2")
    condition = "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}"

    cluster.kill_node("node-2")
    wait_until(
        lambda: cluster.kubectl("get", "node", "node-2", condition).stdout == "Unknown",
        timeout=60,
        what="node-2 to be missed",
        period=0.5,
    )

    cluster.boot_node("node-2")
    assert holders(cluster, "node-2") == {}
    cluster.wait_ready("node-2")
    wait_until(
        lambda: phase(cluster, "holds") in {"Failed", "Succeeded"},
        timeout=60,
        what="the pod of the time before to be given up",
        period=0.5,
    )
    assert start_gpu_pod(start_pod, "holds-again", nodeName="node-2")
    wait_for_holder(cluster, "node-2")
    start_pod("reads", {"nodeName": "node-2"}, command=["cat", BOOT_ID])
    assert printed(cluster, "reads") == boot_id(cluster, "node-2") != before


def test_another_shell_takes_it_down_and_nothing_is_left(cluster: RealCluster) -> None:
    """Processes, mounts, namespaces, cgroups and folders are gone by the record alone."""
    processes = list(cluster.processes())
    assert len(processes) == 9

    subprocess.run([sys.executable, "-m", "tests.cluster", "down"], cwd=REPOSITORY, check=True)

    assert not FOLDER.exists()
    assert str(FOLDER) not in Path("/proc/self/mountinfo").read_text()
    assert not list(Path("/sys/fs/cgroup").rglob("gpusession-node-*"))
    assert not STATE.parent.exists()
    assert not [line for line in command_lines() if str(FOLDER) in line]
