"""Which processes are in a Pod, forwards and backwards, as the kernel's cgroups say.

kubelet names a Pod's cgroup after its uid: `pod<uid>` with the cgroupfs driver,
`...-pod<uid with underscores>.slice` with systemd, below any parent. A uid is compared whole,
never as a prefix. Nothing is written but cgroup.kill; signals are sent by `processes`.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

POD_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}")
"""A Pod's uid: a UUID, or for static Pods the hash of their configuration."""

_POD_CGROUP = re.compile(
    r"(?:.*-)?pod(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?"
)

_KILL_FILE = "cgroup.kill"

_GONE = {errno.ENOENT, errno.ENODEV}
_NOBODY_THERE = _GONE | {errno.EOPNOTSUPP}
"""A threaded cgroup says the last one: its pids are listed in the domain above it."""


@dataclass(frozen=True, slots=True)
class Members:
    """The pids of a Pod, and how many more are hidden: pid 0 is out of our namespace."""

    pids: frozenset[int]
    hidden: int = 0


def pod_of_cgroup(name: str) -> str | None:
    """Tell which Pod a cgroup directory belongs to by its own name, if to any."""
    found = _POD_CGROUP.fullmatch(name)
    return found["uid"].replace("_", "-") if found else None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process lives: in which Pods (none, one, or nested ones), and whether anywhere.

    On cgroup v1 an exiting process shows the root everywhere: its place is not known.
    """

    pods: frozenset[str] = frozenset()
    is_known: bool = False


def place_of(text: str) -> Place:
    """Read a /proc/PID/cgroup."""
    paths = [line.partition(":")[2].partition(":")[2] for line in text.splitlines()]
    names = {name for path in paths for name in path.removesuffix(" (deleted)").split("/")}
    pods = frozenset(uid for name in names if (uid := pod_of_cgroup(name)) is not None)
    return Place(pods, is_known=any(path != "/" for path in paths))


class PodCgroups:
    """Finds the cgroups of Pods below one mount point, version 1 or 2.

    Found directories are remembered and believed only while they exist; a uid is never used
    again, so one that exists is still that Pod's.
    """

    def __init__(self, cgroup_root: Path) -> None:
        self._root = cgroup_root
        self._known: dict[str, tuple[Path, ...]] = {}
        self._was_refused = False

    def members(self, pod_uid: str) -> Members:
        """Read the Pod's pids, nested cgroups included.

        Raises OSError where a list cannot be read: that is not an empty one.
        """
        directories = self.directories(pod_uid)
        pids = [pid for directory in directories for pid in _pids_within(directory)]
        return Members(frozenset(pid for pid in pids if pid > 0), hidden=pids.count(0))

    def kill(self, pod_uid: str, *, spares: Callable[[int], bool]) -> None:
        """Let the kernel kill the Pod's containers at one blow, forks included, where it can.

        A container with a pid in it that is to be spared is left out. The file of the Pod
        itself is never written, as it reaches all containers. On v1 there is no such file.
        """
        for directory in self.directories(pod_uid):
            for container in _children(directory):
                try:
                    _kill(container, spares)
                except OSError as error:
                    self._note(error)

    def _note(self, error: OSError) -> None:
        if error.errno not in _GONE and not self._was_refused:
            self._was_refused = True  # every round of every release would say so
            log.warning("cgroup.kill is refused: processes are killed one by one", error=str(error))

    def directories(self, pod_uid: str) -> tuple[Path, ...]:
        """Find the Pod's cgroups: one on v2, one for each controller on v1."""
        known = self._known.get(pod_uid, ())
        if known and all(directory.is_dir() for directory in known):
            return known
        found = tuple(self._find(pod_uid))
        if found:
            self._known[pod_uid] = found
        else:
            self._known.pop(pod_uid, None)
        return found

    def _find(self, pod_uid: str) -> Iterator[Path]:
        for at, names, _ in os.walk(self._root):
            pods = {name: uid for name in names if (uid := pod_of_cgroup(name)) is not None}
            yield from (Path(at) / name for name, uid in pods.items() if uid == pod_uid)
            names[:] = [name for name in names if name not in pods]


def _children(directory: Path) -> list[Path]:
    try:
        return [entry for entry in directory.iterdir() if entry.is_dir()]
    except OSError:  # gone meanwhile
        return []


def _kill(container: Path, spares: Callable[[int], bool]) -> None:
    # Not to be read: its mode is 0200, and the agent has no capability to pass over that.
    file = os.open(container / _KILL_FILE, os.O_WRONLY)
    try:
        pids = _pids_within(container)
        if pids and not any(spares(pid) for pid in pids):
            os.write(file, b"1")
    finally:
        os.close(file)


def _pids_within(directory: Path) -> list[int]:
    return [
        pid
        for below, _, _ in os.walk(directory)
        for pid in _read_pids(Path(below) / "cgroup.procs")
    ]


def _read_pids(file: Path) -> list[int]:
    try:
        return [int(pid) for pid in file.read_text().split()]
    except OSError as error:
        if error.errno not in _NOBODY_THERE:
            raise
        return []
