"""The simulated kubelet against a real apiserver, with real processes and signals."""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.control_plane import ControlPlane
from tests.support.nvml_simulator import start_time
from tests.support.processes import wait_until
from tests.support.simulated_node.pods import NAMESPACE, Node
from tests.support.simulated_node.program import KubeletProgram

from gpusession.agent.pod_resources import PodResources, Unseen

LOOK = """
import json, pynvml
pynvml.nvmlInit()
devices = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
print(json.dumps({p.pid: p.usedGpuMemory for device in devices
                  for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device)}))
"""


def is_alive(pid: int, born: int) -> bool:
    """Whether this very process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return start_time(pid) == born and state != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> ControlPlane:
    """Give the control plane once the namespace of these tests can take Pods."""
    control_plane.kubectl("create", "namespace", NAMESPACE)
    account = ["get", "serviceaccount", "default", f"--namespace={NAMESPACE}"]
    wait_until(
        lambda: control_plane.kubectl(*account, check=False).returncode == 0,
        timeout=15,
        what="the default ServiceAccount",
    )
    return control_plane


@pytest.fixture(scope="module")
def node(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Give a node that the tests of this file share."""
    yield from running(Node("kubelet-a", "127.0.0.11", plane, tmp_path_factory.mktemp("a")))


@pytest.fixture
def own_node(plane: ControlPlane, tmp_path: Path) -> Iterator[Node]:
    """Give a node that the test may kill."""
    yield from running(Node("kubelet-b", "127.0.0.12", plane, tmp_path))


def running(node: Node) -> Iterator[Node]:
    """Boot a node and take it, with its Pods, out of the cluster at the end."""
    node.kubelet.start()
    try:
        yield node
    finally:
        node.kubectl("delete", "pod", "--all", "--force", "--wait=false")
        node.kubectl("delete", "node", node.kubelet.name, "--wait=false")
        node.kubelet.stop()


def test_a_running_pod_has_a_live_process_in_its_cgroup(node: Node) -> None:
    """A Pod is reported Running only with its living process listed, both ways round."""
    (pid,) = node.start_pod("listed")

    uid = node.pod("listed")["metadata"]["uid"]
    entry = node.root / "proc" / str(pid)
    assert is_alive(pid, start_time(pid))
    assert f"/pod{uid}/" in (entry / "cgroup").read_text()
    assert (entry / "stat").read_text().startswith(f"{pid} ({(entry / 'comm').read_text()[:-1]})")


def test_nvml_shows_the_memory_of_a_running_pod(node: Node) -> None:
    """The simulated driver lists the Pod's own pid with the memory that it asked for."""
    (pid,) = node.start_pod("holder", "--memory=6Gi")

    env = {
        "LD_LIBRARY_PATH": str(node.kubelet.libraries),
        "NVML_SIMULATOR_STATE": str(node.root / "nvml"),
    }
    seen = subprocess.run(
        [sys.executable, "-c", LOOK], env=os.environ | env, capture_output=True, check=True
    )
    assert json.loads(seen.stdout)[str(pid)] == 6 * 2**30


def test_a_deleted_pod_gets_sigterm_and_goes_long_before_its_grace_is_over(node: Node) -> None:
    """A workload that obeys SIGTERM is gone at once, and its cgroup and object with it."""
    (pid,) = node.start_pod("polite")
    pod, born = node.pod("polite"), start_time(pid)

    node.delete("polite", grace=600)

    node.wait_gone("polite")
    assert not is_alive(pid, born)
    assert not list(node.root.glob(f"cgroup/kubepods/**/pod{pod['metadata']['uid']}"))


def test_a_workload_that_ignores_sigterm_is_killed_after_the_grace(node: Node) -> None:
    """SIGKILL comes when the grace is over, not before, and the Pod's object goes after it."""
    (pid,) = node.start_pod("stubborn", "--ignore-sigterm")
    born, asked_at = start_time(pid), time.monotonic()

    node.delete("stubborn", grace=2)

    wait_until(lambda: not is_alive(pid, born), timeout=10, what="SIGKILL", period=0.005)
    assert time.monotonic() - asked_at >= 2
    node.wait_gone("stubborn")


def test_a_shorter_second_deletion_counts(node: Node) -> None:
    """Who deletes again with less grace need not wait for the first grace."""
    node.start_pod("hurried", "--ignore-sigterm")
    node.delete("hurried", grace=600)

    node.delete("hurried", grace=1)

    node.wait_gone("hurried")


def test_a_child_stays_listed_when_its_parent_is_dead(node: Node) -> None:
    """An orphan stays in its Pod's cgroup, as in the kernel, and keeps the Pod running."""
    parent, child = sorted(node.start_pod("family", "--fork-child", "--memory=1Gi"), key=start_time)
    born = start_time(child)

    os.kill(parent, signal.SIGTERM)

    wait_until(lambda: not Path(f"/proc/{parent}").exists(), timeout=5, what="the parent to end")
    wait_until(lambda: node.pids("family") == [child], timeout=5, what="one pid")
    assert is_alive(child, born)


def test_an_orphan_is_killed_when_the_grace_is_over(node: Node) -> None:
    """SIGTERM reaches the first process only; SIGKILL reaches all of them."""
    pids = node.start_pod("orphaned", "--fork-child", "--memory=1Gi")
    born = {pid: start_time(pid) for pid in pids}

    node.delete("orphaned", grace=1)

    node.wait_gone("orphaned")
    assert [pid for pid in pids if is_alive(pid, born[pid])] == []


def test_a_force_deleted_pod_is_killed_at_once(node: Node) -> None:
    """A Pod whose object vanishes has no grace."""
    (pid,) = node.start_pod("forced", "--ignore-sigterm")
    born = start_time(pid)

    node.delete("forced", grace=0, force=True)

    wait_until(lambda: not is_alive(pid, born), timeout=5, what="the process to end")


def test_a_pod_of_the_same_name_is_another_pod(node: Node) -> None:
    """After a forced deletion a new Pod of that name runs, and only the old one is killed."""
    (old,) = node.start_pod("twin", "--ignore-sigterm")
    born = start_time(old)
    node.delete("twin", grace=0, force=True)

    (new,) = node.start_pod("twin")

    wait_until(lambda: not is_alive(old, born), timeout=5, what="the old process to end")
    assert is_alive(new, start_time(new))


def test_a_killed_pod_that_is_never_restarted_has_failed(node: Node) -> None:
    """With restartPolicy Never a SIGKILL is the end, and exit code 137 tells it."""
    (pid,) = node.start_pod("mortal")

    os.kill(pid, signal.SIGKILL)

    (status,) = node.wait("mortal", "Failed")["status"]["containerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == 137


def test_a_pod_that_ends_well_has_succeeded(node: Node) -> None:
    """Exit code 0 is success."""
    node.create("done", "--exit-after=0.1")

    assert node.wait("done", "Succeeded")


def test_a_killed_pod_that_is_always_restarted_comes_back(node: Node) -> None:
    """With restartPolicy Always the killed container is replaced by another one, counted."""
    (pid,) = node.start_pod("phoenix", policy="Always")
    (before,) = node.pod("phoenix")["status"]["containerStatuses"]

    os.kill(pid, signal.SIGKILL)

    def restarted() -> bool:
        (after,) = node.pod("phoenix")["status"]["containerStatuses"]
        other = after["containerID"] != before["containerID"]
        return bool(other and after["restartCount"] == 1 and after["ready"])

    wait_until(restarted, timeout=10, what="the restart")
    assert node.pids("phoenix") not in ([], [pid])


def test_an_unmanaged_pod_is_reported_without_a_process(node: Node) -> None:
    """The harness may run a Pod's program itself: its object only looks as if it ran."""
    pids = node.start_pod("unmanaged", annotations={"simulated-kubelet/unmanaged": "true"})
    ip = node.pod("unmanaged")["status"]["podIP"]

    node.delete("unmanaged", grace=600)

    node.wait_gone("unmanaged")
    assert (pids, ip) == ([], "127.0.0.11")


def test_the_pod_resources_socket_shows_the_pid_of_the_kubelet(node: Node) -> None:
    """SO_PEERCRED of the socket is how an agent sees that it shares kubelet's pids."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(node.root / "pod-resources" / "kubelet.sock"))
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))

    assert struct.unpack("3i", peer)[0] == node.kubelet.process.pid


async def _gpus(node: Node, name: str) -> tuple[str, ...] | Unseen:
    socket = node.root / "pod-resources" / "kubelet.sock"
    return await PodResources(socket, timeout=timedelta(seconds=5)).gpus_of(NAMESPACE, name)


def test_pod_resources_name_the_gpu_of_each_pod(node: Node) -> None:
    """Kubelet's own API tells what the containers see, by the id of a shared GPU's replica."""
    (pid,) = node.start_pod("accelerated")
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")

    (gpu,) = asyncio.run(_gpus(node, "accelerated"))

    assert f"NVIDIA_VISIBLE_DEVICES={gpu}" in environment


@pytest.mark.parametrize(
    "end", [KubeletProgram.kill, KubeletProgram.stop], ids=["SIGKILL", "SIGTERM"]
)
def test_no_process_outlives_the_kubelet(
    own_node: Node, end: Callable[[KubeletProgram], None]
) -> None:
    """However the kubelet ends, its Pods' processes end with it, orphans too."""
    pids = own_node.start_pod(f"left-{end.__name__}", "--fork-child", "--ignore-sigterm")
    shims = [int(group.name) for group in (own_node.root / "groups").iterdir()]
    born = {pid: start_time(pid) for pid in [*pids, *shims]}

    end(own_node.kubelet)

    gone = lambda: not any(is_alive(pid, at) for pid, at in born.items())  # noqa: E731
    wait_until(gone, timeout=5, what="the processes to end")
    assert "Traceback" not in own_node.kubelet.process.log.read_text()


def test_a_new_start_is_a_reboot(own_node: Node) -> None:
    """A restarted kubelet has a new boot id, and Pods that are never restarted have failed."""
    own_node.start_pod("rebooted")
    before = (own_node.root / "boot_id").read_text().strip()

    own_node.kubelet.kill()
    own_node.kubelet.start()

    assert own_node.wait("rebooted", "Failed")
    registered = own_node.kubectl("get", "node", own_node.kubelet.name, "-o", "json")
    assert json.loads(registered)["status"]["nodeInfo"]["bootID"] not in ("", before)
