"""cgroup.kill of the kernel, by a uid 0 that has no more capabilities than the agent's Pod."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests.support.capabilities import CAP_KILL, may_drop, only

from gpusession.agent.processes import PodProcesses

PROC = Path("/proc")
MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
"""Where cgroup2 is: alone, or beside the hierarchies of v1."""

NOBODY = 65534

JOIN = f"""
import ctypes, os, sys, time
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
os.setuid({NOBODY})
ends_at = time.monotonic() + 15  # by itself: nothing outlives a test run that was killed
"""

SLEEPER = JOIN + 'print("up", flush=True)\ntime.sleep(15)'

SANDBOX = JOIN + 'ctypes.CDLL(None).prctl(15, b"pause")\nprint("up", flush=True)\ntime.sleep(15)'

FORKER = f"""{JOIN}
if os.fork():
    print("up", flush=True)
    time.sleep(15)
while time.monotonic() < ends_at:  # one at any time, and gone before anybody has read its pid
    if os.fork():
        os._exit(0)
"""


@pytest.fixture
def pod() -> Iterator[Path]:
    """Give the cgroup of a Pod, empty, in a cgroup2 of the kernel."""
    mount = next((each for each in MOUNTS if (each / "cgroup.controllers").exists()), None)
    if mount is None or not may_drop():
        pytest.skip("needs root and a cgroup2 at /sys/fs/cgroup or its unified/")
    top = mount / f"gpusession-test-{uuid.uuid4().hex[:8]}"
    pod = top / "kubepods" / f"pod{uuid.uuid4()}"
    try:
        pod.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"cannot make cgroups at {mount}: {error}")
    try:
        if not (top / "cgroup.kill").exists():
            pytest.skip("the kernel is older than cgroup.kill (5.14)")
        yield pod
    finally:
        _remove(top)


def _remove(top: Path) -> None:
    with suppress(FileNotFoundError):
        (top / "cgroup.kill").write_text("1")
    for _ in range(500):  # what was killed leaves its cgroup a moment later
        for folder, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
        if not top.exists():
            return
        time.sleep(0.01)


@pytest.fixture
def start(pod: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Give a way to start a program in a cgroup of the Pod."""
    with ExitStack() as stack:

        def in_cgroup(program: str, name: str = "", *behind: str) -> subprocess.Popen[bytes]:
            (pod / name).mkdir(parents=True, exist_ok=True)
            command = [*behind, sys.executable, "-c", program, str(pod / name)]
            child = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(child.kill)
            assert child.stdout is not None
            assert child.stdout.readline() == b"up\n"
            return child

        yield in_cgroup


def _processes(pod: Path) -> tuple[PodProcesses, str]:
    return PodProcesses(proc_root=PROC, cgroup_root=pod.parents[1]), pod.name[len("pod") :]


async def test_a_tree_that_forks_without_a_pause_is_gone_and_the_sandbox_lives(
    pod: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Containers, cgroups nested in them, and what is in the Pod's own: all but `pause`."""
    processes, uid = _processes(pod)
    sandbox = start(SANDBOX, "sandbox")
    start(SLEEPER, "workload/nested")
    start(SLEEPER)
    start(FORKER, "workload")
    await asyncio.sleep(0.1)

    with only(CAP_KILL):
        await processes.kill(uid, deadline_at=time.monotonic() + 5)

    assert processes.living(uid).pids == set()
    assert sandbox.poll() is None


async def test_the_kernel_kills_where_no_signal_of_ours_would(
    pod: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Without even CAP_KILL the file can be opened and written: nothing else did it here."""
    processes, uid = _processes(pod)
    sandbox, worker = start(SANDBOX, "sandbox"), start(SLEEPER, "workload")

    with only():
        await processes.kill(uid, deadline_at=time.monotonic() + 5)

    assert worker.wait() == -9
    assert sandbox.poll() is None


async def test_a_forker_with_its_own_pid_namespace_ends_without_cgroup_kill(
    pod: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """As on cgroup v1: with its pid 1 go all, so freezing them first would gain nothing."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare of util-linux")
    processes, uid = _processes(pod)
    spared = start(SANDBOX, "workload")
    start(FORKER, "workload", "unshare", "--pid", "--fork", "--kill-child")

    with only(CAP_KILL):
        await processes.kill(uid, deadline_at=time.monotonic() + 5)

    assert processes.living(uid).pids == set()
    assert spared.poll() is None
