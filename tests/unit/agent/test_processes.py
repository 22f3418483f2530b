"""Processes held by pidfd: real children, in cgroups of the kernel where we may make them."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gpusession.agent.processes import PodProcesses, ProcessId, close_all, wait_for_exits

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

FORK_CHAINS = """
import os, time
end = time.monotonic() + 3  # by itself: a broken kill must not drown the machine in forks
if os.fork() and os.fork() and os.fork():
    print("up", flush=True)
    time.sleep(60)
while time.monotonic() < end:  # four at any time: each ends when the next one is born
    time.sleep(0.001)
    if os.fork():
        os._exit(0)
"""

NAMED = """
import ctypes, time
ctypes.CDLL(None).prctl(15, b"a) S 1 (b", 0, 0, 0)
print("up", flush=True)
time.sleep(60)
"""

SANDBOX = NAMED.replace("a) S 1 (b", "pause")

ZOMBIE_LEADER = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("up", flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""


def _fake_proc(tmp_path: Path, pid: int, cgroup: str) -> PodProcesses:
    entry = tmp_path / "proc" / str(pid)
    entry.mkdir(parents=True)
    (entry / "cgroup").write_text(f"0::{cgroup}\n")
    (entry / "stat").symlink_to(f"/proc/{pid}/stat")
    (tmp_path / "cgroup").mkdir(exist_ok=True)
    return PodProcesses(proc_root=tmp_path / "proc", cgroup_root=tmp_path / "cgroup")


def _start(*argv: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(argv, stdout=subprocess.PIPE)
    if len(argv) > 2:
        assert child.stdout is not None
        child.stdout.readline()
    return child


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    with child:
        pass


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Give a child that sleeps."""
    child = _start("sleep", "60")
    yield child
    _end(child)


@pytest.fixture(params=[".", "unified", "pids", "systemd"])
def kernel_pod(request: pytest.FixtureRequest) -> Iterator[tuple[Path, str]]:
    """Give a Pod's cgroup of the kernel and its uid: v2, v2 of a hybrid, v1 controllers."""
    mount = CGROUPS / request.param
    uid = str(uuid.uuid4())
    container = mount / "gpusession-test" / "kubepods" / f"pod{uid}" / "container"
    if not (mount / "cgroup.procs").exists():
        pytest.skip(f"no cgroup mount at {mount}")
    try:
        container.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"cannot make cgroups at {mount}: {error}")
    yield container, uid
    for _ in range(200):
        for pid in (container / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with suppress(OSError):
            container.rmdir()
            break
        time.sleep(0.01)
    for made in container.parents[:3]:
        made.rmdir()


def test_start_time_of_a_name_with_brackets_and_spaces() -> None:
    """Field 22 is counted from the last bracket of the name."""
    child = _start(sys.executable, "-c", NAMED)
    processes = PodProcesses(proc_root=PROC, cgroup_root=CGROUPS)

    own, its = processes.identify(os.getpid()), processes.identify(child.pid)
    _end(child)

    assert own is not None
    assert its is not None
    assert own.start_time < its.start_time < own.start_time + 100 * 3600 * 24


def test_a_zombie_is_dead() -> None:
    """What has exited and waits to be collected holds nothing."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    identity = PodProcesses(proc_root=PROC, cgroup_root=CGROUPS).identify(child.pid)
    child.wait()

    assert identity is None


def test_threads_behind_a_zombie_leader_live() -> None:
    """The leader's exit does not free what its threads still use."""
    child = _start(sys.executable, "-c", ZOMBIE_LEADER)
    stat = Path(f"/proc/{child.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.005)

    identity = PodProcesses(proc_root=PROC, cgroup_root=CGROUPS).identify(child.pid)
    _end(child)

    assert identity is not None


def test_only_the_pods_processes_are_opened(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """A pid that another Pod got in the meantime is dropped before any signal."""
    mine, others = str(uuid.uuid4()), str(uuid.uuid4())
    processes = _fake_proc(tmp_path, sleeper.pid, f"/kubepods/pod{others}/a")

    assert processes.open([sleeper.pid], mine) == []
    opened = processes.open([sleeper.pid], others)
    assert [process.id.pid for process in opened] == [sleeper.pid]
    close_all(opened)


@pytest.mark.parametrize("pid", [0, 1, os.getpid()], ids=["0", "1", "self"])
def test_init_and_the_agent_are_never_opened(tmp_path: Path, pid: int) -> None:
    """Whatever a cgroup file says, these are not signalled."""
    uid = str(uuid.uuid4())

    assert _fake_proc(tmp_path, pid, f"/kubepods/pod{uid}/a").open([pid], uid) == []


async def test_exit_is_seen_through_the_pidfd(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """SIGTERM goes out, the exit comes back in milliseconds."""
    uid = str(uuid.uuid4())
    opened = _fake_proc(tmp_path, sleeper.pid, f"/kubepods/pod{uid}/a").open([sleeper.pid], uid)

    for process in opened:
        process.send(signal.SIGTERM)
    in_time = await wait_for_exits(opened, deadline_at=time.monotonic() + 2)
    close_all(opened)

    assert in_time
    assert sleeper.wait() == -signal.SIGTERM


async def test_waiting_ends_at_the_deadline(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """A process that does not exit costs the deadline and no more."""
    uid = str(uuid.uuid4())
    opened = _fake_proc(tmp_path, sleeper.pid, f"/kubepods/pod{uid}/a").open([sleeper.pid], uid)
    began_at = time.monotonic()

    in_time = await wait_for_exits(opened, deadline_at=began_at + 0.05)
    close_all(opened)

    assert not in_time
    assert time.monotonic() - began_at > 0.04


async def test_forks_that_race_the_kill_die_too(kernel_pod: tuple[Path, str]) -> None:
    """In a cgroup of the kernel, processes that fork all the time are all ended."""
    container, uid = kernel_pod
    join = f"open({str(container / 'cgroup.procs')!r}, 'w').write('0')\n"
    child = _start(sys.executable, "-c", join + FORK_CHAINS)
    await asyncio.sleep(0.1)
    root = next(parent for parent in container.parents if parent.name == "gpusession-test").parent
    processes = PodProcesses(proc_root=PROC, cgroup_root=root)
    seen = len(processes.members(uid).pids)

    hit = await processes.kill(uid, deadline_at=time.monotonic() + 5)
    left = processes.members(uid).pids
    _end(child)

    assert seen > 1
    assert len(hit.processes) >= 1
    assert left == frozenset()


@pytest.mark.parametrize("holds_agent", [False, True], ids=["another Pod", "the agent's Pod"])
async def test_the_kernel_kills_a_container_unless_the_agent_is_in_it(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], *, holds_agent: bool
) -> None:
    """cgroup.kill is used where it exists (here a plain file), and never against oneself."""
    uid = str(uuid.uuid4())
    processes = _fake_proc(tmp_path, sleeper.pid, f"/kubepods/pod{uid}/a")
    (tmp_path / "proc" / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    container = tmp_path / "cgroup" / f"pod{uid}" / "container"
    container.mkdir(parents=True)
    (container / "cgroup.kill").write_text("")
    listed = [sleeper.pid, os.getpid()] if holds_agent else [sleeper.pid]
    (container / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in listed))

    hit = await processes.kill(uid, deadline_at=time.monotonic() + 0.05)

    assert {process.pid for process in hit.processes} == {sleeper.pid}
    assert (container / "cgroup.kill").read_text() == ("" if holds_agent else "1")


def _tell(fifo: Path, *texts: str) -> None:
    for text in texts:
        with fifo.open("w") as file:
            file.write(text)
        time.sleep(0.02)  # the reader has closed it by then; if not, it reads the next as well


def test_a_child_that_only_a_later_list_has_is_found(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """Whoever was listed and is dead now may have forked in between."""
    uid = str(uuid.uuid4())
    processes = _fake_proc(tmp_path, sleeper.pid, f"/kubepods/pod{uid}/a")
    container = tmp_path / "cgroup" / f"pod{uid}"
    container.mkdir()
    os.mkfifo(container / "cgroup.procs")
    lists = ("999999999\n", f"{sleeper.pid}\n")
    threading.Thread(target=_tell, args=(container / "cgroup.procs", *lists), daemon=True).start()

    assert processes.living(uid).pids == {sleeper.pid}


def test_a_process_id_is_pid_and_start_time() -> None:
    """Two processes that had one pid after the other are not the same."""
    assert ProcessId(7, 1) != ProcessId(7, 2)


@pytest.mark.parametrize(("holders", "counts"), [(False, False), (True, True)])
def test_the_sandbox_is_spared_unless_it_holds_memory(
    tmp_path: Path, *, holders: bool, counts: bool
) -> None:
    """Its death would have kubelet start the containers again behind a release."""
    uid = str(uuid.uuid4())
    sandbox, worker = _start(sys.executable, "-c", SANDBOX), _start(sys.executable, "-c", NAMED)
    pids = {sandbox.pid, worker.pid}
    try:
        for pid in pids:
            processes = _fake_proc(tmp_path, pid, f"/kubepods/pod{uid}")
        listed = tmp_path / "cgroup" / "kubepods" / f"pod{uid}" / "cgroup.procs"
        listed.parent.mkdir(parents=True)
        listed.write_text("\n".join(map(str, pids)))

        living = processes.living(uid, also=pids if holders else ()).pids
    finally:
        for child in (sandbox, worker):
            _end(child)

    assert living == (pids if counts else {worker.pid})
