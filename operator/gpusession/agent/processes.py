"""A Pod's processes: found by cgroup, held by pidfd, signalled, and seen to exit.

A pid is only a number: the kernel may give it to somebody else at any time. So the pidfd is
opened first, then start time and cgroup are read, and signals go through the pidfd: what was
checked is what is signalled. Pid 1, the agent itself and other Pods are never signalled.
"""

import asyncio
import os
import signal
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeGuard

from gpusession.agent.cgroups import Members, Place, PodCgroups, place_of

KILL_PERIOD = 0.01
"""Longest seconds between two rounds of SIGKILL: a fork that raced the last waits no longer."""

_KILL_PAUSE = 0.002
"""Seconds before another round, also where nothing could be opened to wait for."""

_LISTS = 10
"""Looks in a row at whom the kernel lists, where the dead alone are met: it lists the living,
so they have died since, and may have left a child. A look takes a fraction of a millisecond."""

SANDBOX = "pause"
"""The process of a Pod's sandbox in containerd and CRI-O: it only keeps namespaces open."""


class ProcessId(NamedTuple):
    """A pid with the start time that makes it one process and no other."""

    pid: int
    start_time: int


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a Pod, held by its pidfd; whoever opened it closes it."""

    id: ProcessId
    pidfd: int

    def send(self, number: signal.Signals) -> bool:
        """Signal it, if it has not exited; False if we may not: no capability, or AppArmor."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return True

    def close(self) -> None:
        """Let the pidfd go."""
        os.close(self.pidfd)


@dataclass(frozen=True, slots=True)
class Hit:
    """Whom signals were meant for, and to which of those we may not send any."""

    processes: frozenset[ProcessId] = frozenset()
    refused: frozenset[ProcessId] = frozenset()

    def __or__(self, other: "Hit") -> "Hit":
        """Join the hits of two rounds."""
        return Hit(self.processes | other.processes, self.refused | other.refused)


class _Stat(NamedTuple):
    name: str
    start_time: int
    is_dead: bool


def _is_alive(stat: _Stat | None) -> TypeGuard[_Stat]:
    return stat is not None and not stat.is_dead


class PodProcesses:
    """Looks at processes below proc_root and at cgroups below cgroup_root."""

    def __init__(self, *, proc_root: Path, cgroup_root: Path) -> None:
        self._proc = proc_root
        self._cgroups = PodCgroups(cgroup_root)
        self._self = os.getpid()

    def has_cgroup(self, pod_uid: str) -> bool:
        """Tell whether the Pod still has a cgroup; kubelet removes it last."""
        return bool(self._cgroups.directories(pod_uid))

    def members(self, pod_uid: str) -> Members:
        """Tell which pids the Pod's cgroups list, dead ones included."""
        return self._cgroups.members(pod_uid)

    def living(self, pod_uid: str, *, also: Iterable[int] = ()) -> Members:
        """Tell which of the Pod's pids live: a zombie without threads holds nothing.

        `also` are pids found elsewhere, which count where their cgroup is the Pod's. The
        sandbox is spared and not counted: kubelet makes a dead one anew, and the containers
        with it, though the Pod be deleted, if it learns of the death before the deletion.
        """
        others = {pid for pid in also if pod_uid in self.place(pid).pods}
        holders = {pid for pid in others if _is_alive(self._stat(pid))}
        for _ in range(_LISTS):
            members = self.members(pod_uid)
            stats = {pid: self._stat(pid) for pid in members.pids}
            alive = {p for p, stat in stats.items() if _is_alive(stat) and stat.name != SANDBOX}
            if alive or all(map(_is_alive, stats.values())):
                break
        return Members(frozenset(alive | holders), members.hidden)

    def place(self, pid: int) -> Place:
        """Tell in which Pods a process is; an unreadable one has no known place."""
        try:
            return place_of((self._proc / str(pid) / "cgroup").read_text())
        except OSError:
            return Place()

    def identify(self, pid: int) -> ProcessId | None:
        """Give the process behind a pid, or None where it is dead or cannot be read."""
        stat = self._stat(pid)
        return None if stat is None or stat.is_dead else ProcessId(pid, stat.start_time)

    def open(self, pids: Iterable[int], pod_uid: str) -> list[Process]:
        """Hold those of the pids that are living processes of the Pod."""
        opened = (self._open(pid, pod_uid) for pid in sorted(pids))
        return [process for process in opened if process is not None]

    def _open(self, pid: int, pod_uid: str) -> Process | None:
        if pid <= 1 or pid == self._self:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # gone, or out of descriptors: it counts as alive and is tried again
            return None
        identity = self.identify(pid)
        if identity is None or pod_uid not in self.place(pid).pods:
            os.close(pidfd)
            return None
        return Process(identity, pidfd)

    async def kill(self, pod_uid: str, *, also: Iterable[int] = (), deadline_at: float) -> Hit:
        """SIGKILL the Pod until nothing of it lives or the deadline; tell who was hit.

        The kernel is asked to kill each container at one blow, but for the sandbox's, and for
        one with this very agent in it; what lives outside of them is killed pid by pid.
        """
        also = frozenset(also)
        hit = Hit()
        living = self.living(pod_uid, also=also)
        while living.pids:
            round_ends_at = min(deadline_at, time.monotonic() + KILL_PERIOD)
            hit |= await self._kill_round(living.pids, pod_uid, round_ends_at)
            living = self.living(pod_uid, also=also)
            if time.monotonic() >= deadline_at:
                break
            if living.pids:
                await asyncio.sleep(_KILL_PAUSE)
        return hit

    async def _kill_round(self, pids: Collection[int], pod_uid: str, ends_at: float) -> Hit:
        held = self.open(pids, pod_uid)
        try:
            self._cgroups.kill(pod_uid, spares=self._is_spared)
            hit = send_all(held, signal.SIGKILL)
            await wait_for_exits(held, deadline_at=ends_at)
        finally:
            close_all(held)
        return hit

    def _is_spared(self, pid: int) -> bool:
        stat = self._stat(pid)
        if stat is None:  # gone, or there and not to be read: then who knows
            return (self._proc / str(pid)).exists()
        return pid == self._self or stat.name == SANDBOX

    def _stat(self, pid: int) -> _Stat | None:
        try:
            text = (self._proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return None
        # The name in field 2 may hold spaces and brackets: count from the last bracket.
        before, _, after = text.rpartition(")")
        state, *fields = after.split()
        threads, start_time = int(fields[16]), int(fields[18])  # fields 20 and 22
        # Threads behind a zombie leader keep the memory of the process.
        name = before.partition("(")[2]
        return _Stat(name, start_time, is_dead=state in "ZX" and threads <= 1)


def send_all(processes: Collection[Process], number: signal.Signals) -> Hit:
    """Signal all of them."""
    refused = frozenset(process.id for process in processes if not process.send(number))
    return Hit(frozenset(process.id for process in processes), refused)


async def wait_for_exits(processes: Collection[Process], *, deadline_at: float) -> bool:
    """Wait until all have exited, or the deadline; tell whether they have."""
    loop = asyncio.get_running_loop()
    exits = [loop.create_future() for _ in processes]
    for process, exited in zip(processes, exits, strict=True):
        loop.add_reader(process.pidfd, _note_exit, process.pidfd, exited)
    try:
        async with asyncio.timeout(max(0.0, deadline_at - time.monotonic())):
            await asyncio.gather(*exits)
    except TimeoutError:
        return False
    else:
        return True
    finally:
        for process in processes:
            loop.remove_reader(process.pidfd)


def _note_exit(pidfd: int, exited: asyncio.Future[None]) -> None:
    asyncio.get_running_loop().remove_reader(pidfd)
    if not exited.done():
        exited.set_result(None)


def close_all(processes: Iterable[Process]) -> None:
    """Let the pidfds of all of them go."""
    for process in processes:
        process.close()
