"""Joins what NVML lists with whose processes they are: bind, observer and release look so.

A pid in NVML's lists is a process of the Pod, of another Pod, or of nobody known. The last
kind counts against the Session whose GPU it is on, unless it was there before the Session.

NVML answers one question after the other, so whoever asks while it answers shares the next
look: a batch of 32 releases costs hardly more looks than one.
"""

import asyncio
import time
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from gpusession.agent.cgroups import Place
from gpusession.agent.nvml import Blind, BlindReason, Holder, Nvml, Snapshot
from gpusession.agent.processes import PodProcesses, ProcessId
from gpusession.metrics import NVML_BLIND


@dataclass(frozen=True, slots=True)
class Stranger:
    """An entry of NVML that belongs to no Pod."""

    gpu_uuid: str
    pid: int
    id: ProcessId | None
    """None where the process is gone or unreadable: NVML still lists it."""
    is_placed: bool
    """Whether its cgroup is known and not the root: it is the host's own then."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of NVML's lists, and who is behind it; `id` is None where that is unreadable."""

    holder: Holder
    place: Place
    id: ProcessId | None


@dataclass(frozen=True, slots=True)
class Scene:
    """What one look found on the GPUs that it could read."""

    gpu_uuids: frozenset[str]
    entries: tuple[Entry, ...]
    excess: Mapping[str, int]
    """Bytes in use, beyond the idle baseline, on each GPU that lists nobody and has one."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one Scene shows of one Pod."""

    holders: tuple[Holder, ...]
    strangers: tuple[Stranger, ...]

    @property
    def gpu_uuids(self) -> frozenset[str]:
        """On which GPUs or MIG devices the Pod holds something."""
        return frozenset(holder.gpu_uuid for holder in self.holders)

    @property
    def memory_bytes(self) -> int:
        """What NVML attributes to the Pod; a process without a size adds nothing."""
        return sum(holder.memory_bytes or 0 for holder in self.holders)


def sighting_of(
    scene: Scene, pod_uid: str, *, own_pids: AbstractSet[int] = frozenset()
) -> Sighting:
    """Pick the Pod's entries, and those that no Pod has.

    `own_pids` were the Pod's a moment ago: NVML may list them for longer than they live,
    and gives no start time to tell them from a successor by.
    """
    holders: list[Holder] = []
    strangers: list[Stranger] = []
    for entry in scene.entries:
        holder, pods = entry.holder, entry.place.pods
        if pod_uid in pods or holder.pid in own_pids:
            holders.append(holder)
        elif not pods:
            strangers.append(
                Stranger(holder.gpu_uuid, holder.pid, entry.id, is_placed=entry.place.is_known)
            )
    return Sighting(tuple(holders), tuple(strangers))


class GpuView:
    """Looks at NVML and at who is behind its entries.

    The least that a GPU without entries was seen to use is its idle baseline. What lies
    above it later, with still nobody listed, is memory that somebody unseen holds.
    """

    def __init__(self, nvml: Nvml, processes: PodProcesses) -> None:
        self._nvml = nvml
        self._processes = processes
        self._running: asyncio.Task[Scene | Blind] | None = None
        self._next: asyncio.Task[Scene | Blind] | None = None
        self._known: dict[int, tuple[ProcessId, Place]] = {}
        self._idle_bytes: dict[str, int] = {}

    async def look(
        self, known: Collection[str] = (), *, deadline_at: float | None = None
    ) -> Scene | Blind:
        """Read every GPU, not before the call; those that are known must have been read.

        Where some GPU of the node is sick, the known ones are enough. A known one that is
        no more (lost, or its MIG device destroyed) blinds the answer: nobody saw it clean.
        """
        left = None if deadline_at is None else max(0.0, deadline_at - time.monotonic())
        try:
            async with asyncio.timeout(left):
                seen = await self._look(frozenset(known))
        except TimeoutError:
            seen = Blind(BlindReason.CUT_OFF, "NVML gave no answer within this stage")
        if isinstance(seen, Blind):
            NVML_BLIND.labels(seen.reason).inc()
        return seen

    async def _look(self, known: frozenset[str]) -> Scene | Blind:
        seen = await self._look_at_every_gpu()
        if isinstance(seen, Blind):
            hopeless = not known or seen.reason is BlindReason.NVML_TIMEOUT
            return seen if hopeless else await self._read(known)
        missing = known - seen.gpu_uuids
        rest = await self._read(missing) if missing else seen
        if isinstance(rest, Blind) or not missing:
            return rest
        return Scene(
            seen.gpu_uuids | rest.gpu_uuids,
            seen.entries + rest.entries,
            {**seen.excess, **rest.excess},
        )

    async def _look_at_every_gpu(self) -> Scene | Blind:
        """Share the next look that has not begun; one that has begun may have missed us."""
        if self._next is None:
            self._next = asyncio.create_task(self._look_after(self._running))
        return await asyncio.shield(self._next)

    async def _look_after(self, running: asyncio.Task[Scene | Blind] | None) -> Scene | Blind:
        if running is not None and not running.done():
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        seen = await self._read(None)
        if isinstance(seen, Scene):
            listed = {entry.holder.pid for entry in seen.entries}
            self._known = {pid: known for pid, known in self._known.items() if pid in listed}
        return seen

    async def _read(self, uuids: frozenset[str] | None) -> Scene | Blind:
        snapshot = await self._nvml.snapshot(uuids)
        return snapshot if isinstance(snapshot, Blind) else self._scene(snapshot)

    def _scene(self, snapshot: Snapshot) -> Scene:
        pids = {holder.pid for holder in snapshot.holders}
        behind = {pid: self._behind(pid) for pid in pids}
        entries = (Entry(holder, *behind[holder.pid]) for holder in snapshot.holders)
        read = {gpu.uuid for gpu in snapshot.gpus} | {h.gpu_uuid for h in snapshot.holders}
        return Scene(frozenset(read), tuple(entries), self._excess(snapshot))

    def _excess(self, snapshot: Snapshot) -> dict[str, int]:
        excess = {}
        for gpu in snapshot.gpus:
            if gpu.holders:
                continue
            idle = min(gpu.used_bytes, self._idle_bytes.get(gpu.uuid, gpu.used_bytes))
            self._idle_bytes[gpu.uuid] = idle
            excess[gpu.uuid] = gpu.used_bytes - idle
        return excess

    def _behind(self, pid: int) -> tuple[Place, ProcessId | None]:
        """Tell whose a listed pid is; one that exits meanwhile is still who it was.

        1. NVML lists a process of a neighbour Pod. 2. It exits, and its /proc entry goes or
        shows no cgroup. 3. NVML lists it for a moment longer. Without a memory that would be
        a process of no Pod on the GPU of everybody else.
        """
        place, identity = self._processes.place(pid), self._processes.identify(pid)
        known = self._known.get(pid)
        if place.pods and identity is not None:
            self._known[pid] = identity, place
        elif known is not None and identity in {None, known[0]}:
            place = known[1]
        return place, identity
