"""Which processes are in a Pod, forwards and backwards, as the kernel's cgroups say.

kubelet names a Pod's cgroup after its uid: `pod<uid>` with the cgroupfs driver,
`...-pod<uid with underscores>.slice` with systemd, below any parent. A uid is compared whole,
never as a prefix. Reads only; signals are sent by `processes`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

POD_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}")
"""A Pod's uid: a UUID, or for static Pods the hash of their configuration."""

_POD_CGROUP = re.compile(
    r"(?:.*-)?pod(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?"
)

_KILL_FILE = "cgroup.kill"


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

    def members(self, pod_uid: str) -> Members:
        """Read the Pod's pids, its nested cgroups and threads of none included."""
        pids = [
            pid
            for directory in self.directories(pod_uid)
            for below, _, _ in os.walk(directory)
            for pid in _read_pids(Path(below) / "cgroup.procs")
        ]
        return Members(frozenset(pid for pid in pids if pid > 0), hidden=pids.count(0))

    def kill(self, pod_uid: str) -> None:
        """Let the kernel kill the whole Pod at once, forks included, where it can (v2)."""
        for directory in self.directories(pod_uid):
            try:
                with (directory / _KILL_FILE).open("r+") as file:
                    file.write("1")
            except OSError:  # no such file on v1; the loop over cgroup.procs does it there
                continue

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


def _read_pids(file: Path) -> list[int]:
    try:
        return [int(pid) for pid in file.read_text().split()]
    except OSError:  # gone meanwhile, or a threaded cgroup: its pids are in the domain above
        return []
