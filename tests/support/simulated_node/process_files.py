"""Keeps the files in which an agent looks for a node's processes: cgroup v2 and /proc.

The containers' processes are real and so are their names and start times; only cgroup
membership is written here, in the layout of kubelet's cgroupfs driver. A limit: a forked
child shows up to SCAN_SECONDS late, where the kernel would list it at once.
"""

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SCAN_SECONDS = 0.01
"""How often to ask whether any process was born: one read of ten microseconds."""

BUSY_SHARE = 4
"""Rest this many times as long as a scan took: a fifth of one core at most."""

SCANS = 2
"""A list of children that is read while one of them ends may lack others: read it again."""

FULL_SCAN_SECONDS = 1.0
"""Scan even if nothing seems born: some kernels do not tell the last pid."""


@dataclass(slots=True)
class _Container:
    cgroup: Path
    shim: int
    pidfds: dict[int, int] = field(default_factory=dict)


class ProcessFiles:
    """Every container's processes as files below `root`; `watch` keeps them true."""

    def __init__(self, root: Path) -> None:
        self._cgroup_root = root / "cgroup"
        self._proc_root = root / "proc"
        self._containers: dict[str, _Container] = {}
        self._scans_due = SCANS
        for folder in (self._cgroup_root, self._proc_root):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def write_boot_id(self, boot_id: str) -> None:
        """Say which boot of the node this is."""
        path = self._proc_root / "sys" / "kernel" / "random" / "boot_id"
        path.parent.mkdir(parents=True)
        replace(path, f"{boot_id}\n")

    def add_pod(self, pod_cgroup: Path) -> None:
        """Make a Pod's cgroup; like every level of the tree it has a cgroup.procs."""
        for level in (*reversed(pod_cgroup.parents), pod_cgroup):
            folder = self._cgroup_root / level
            folder.mkdir(exist_ok=True)
            (folder / "cgroup.procs").touch()

    def remove_pod(self, pod_cgroup: Path) -> None:
        """Take the cgroup of a Pod away that has no container any more."""
        shutil.rmtree(self._cgroup_root / pod_cgroup, ignore_errors=True)

    def add(self, container_id: str, *, cgroup: Path, shim: int) -> None:
        """List all that descends from this shim under the cgroup from here on."""
        (self._cgroup_root / cgroup).mkdir()
        container = _Container(cgroup=cgroup, shim=shim)
        self._containers[container_id] = container
        self._write_members(container)
        self.refresh(container_id)

    def remove(self, container_id: str) -> None:
        """Forget a container whose processes are gone."""
        container = self._containers.pop(container_id)
        for pid in list(container.pidfds):
            self._drop(container, pid)
        shutil.rmtree(self._cgroup_root / container.cgroup)

    def refresh(self, container_id: str) -> None:
        """List what the container forked since the last look."""
        container = self._containers[container_id]
        born = [pid for pid in _descendants(container.shim) if pid not in container.pidfds]
        noted = [self._note(container, pid) for pid in born]
        if any(noted):
            self._write_members(container)

    async def watch(self) -> None:
        """Refresh all containers whenever some process was born on this machine."""
        loop = asyncio.get_running_loop()
        seen, full_at = b"", 0.0
        while True:
            born, began_at = _last_pid(), loop.time()
            if born != seen or began_at >= full_at:
                seen, full_at = born, began_at + FULL_SCAN_SECONDS
                self._scans_due = SCANS
            if self._scans_due:
                self._scans_due -= 1
                for container_id in self._containers:
                    self.refresh(container_id)
            await asyncio.sleep(max(SCAN_SECONDS, BUSY_SHARE * (loop.time() - began_at)))

    def _note(self, container: _Container, pid: int) -> bool:
        """Write the /proc entry of a new process and hold a pidfd; False if it is dead."""
        if _is_zombie(pid):
            return False
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        container.pidfds[pid] = pidfd
        self._write_proc_entry(pid, container.cgroup)
        asyncio.get_running_loop().add_reader(pidfd, self._bury, container, pid)
        return True

    def _bury(self, container: _Container, pid: int) -> None:
        """Remove a process that has just ended; its children have moved."""
        self._scans_due = SCANS
        self._drop(container, pid)
        self._write_members(container)

    def _drop(self, container: _Container, pid: int) -> None:
        pidfd = container.pidfds.pop(pid)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        shutil.rmtree(self._proc_root / str(pid), ignore_errors=True)

    def _write_members(self, container: _Container) -> None:
        members = "".join(f"{pid}\n" for pid in sorted(container.pidfds))
        replace(self._cgroup_root / container.cgroup / "cgroup.procs", members)

    def _write_proc_entry(self, pid: int, cgroup: Path) -> None:
        entry, fresh = self._proc_root / str(pid), self._proc_root / f".{pid}"
        for leftover in (entry, fresh):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir()
        (fresh / "cgroup").write_text(f"0::/{cgroup}\n")
        for name in ("stat", "comm"):
            (fresh / name).symlink_to(f"/proc/{pid}/{name}")
        fresh.rename(entry)


def replace(path: Path, text: str) -> None:
    """Write a file that readers see whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.rename(path)


def _last_pid() -> bytes:
    """Give the pid of the process or thread born last."""
    with open("/proc/loadavg", "rb", buffering=0) as load:  # noqa: PTH123 - the hot path
        return load.read().rpartition(b" ")[2]


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        threads = len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 - names only, no paths
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(b") ")[2][:1] in b"ZX" and threads <= 1


def _descendants(pid: int) -> Iterator[int]:
    """Give children, their children and so on; orphans are children of the shim again."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - names only, no paths
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as children:  # noqa: PTH123 - the hot path
                for child in children.read().split():
                    yield int(child)
                    yield from _descendants(int(child))
    except (FileNotFoundError, ProcessLookupError):
        return
