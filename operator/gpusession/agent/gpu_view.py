"""Joins what NVML lists with whose processes they are: bind, observer and release look so.

A pid in NVML's lists is a process of the Pod, of another Pod, or of nobody known. The last
kind counts against the Session whose GPU it is on, unless it was there before the Session.
"""

import asyncio
import time
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

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
class Sighting:
    """What one Snapshot shows of one Pod."""

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


class GpuView:
    """Looks at NVML and tells Pods apart."""

    def __init__(self, nvml: Nvml, processes: PodProcesses) -> None:
        self._nvml = nvml
        self._processes = processes

    async def look(
        self, known: Collection[str] = (), *, deadline_at: float | None = None
    ) -> Snapshot | Blind:
        """Read every GPU; at least those that are known to matter must have been read.

        Where some GPU of the node is sick, the known ones are enough. A known one that is
        no more (lost, or its MIG device destroyed) blinds the answer: nobody saw it clean.
        """
        seen = await self._bounded(None, deadline_at)
        if isinstance(seen, Snapshot):
            read = {gpu.uuid for gpu in seen.gpus} | {h.gpu_uuid for h in seen.holders}
            missing = set(known) - read
            if not missing:
                return seen
            rest = await self._bounded(missing, deadline_at)
            seen = rest if isinstance(rest, Blind) else Snapshot((*seen.gpus, *rest.gpus))
        elif known and seen.reason is not BlindReason.NVML_TIMEOUT:
            seen = await self._bounded(known, deadline_at)
        if isinstance(seen, Blind):
            NVML_BLIND.labels(seen.reason).inc()
        return seen

    async def _bounded(
        self, uuids: Collection[str] | None, deadline_at: float | None
    ) -> Snapshot | Blind:
        left = None if deadline_at is None else max(0.0, deadline_at - time.monotonic())
        try:
            async with asyncio.timeout(left):
                return await self._nvml.snapshot(uuids)
        except TimeoutError:
            return Blind(BlindReason.NVML_TIMEOUT, "NVML gave no answer within this stage")

    def of_pod(
        self, snapshot: Snapshot, pod_uid: str, *, own_pids: AbstractSet[int] = frozenset()
    ) -> Sighting:
        """Pick the Pod's entries, and those that no Pod has.

        `own_pids` were the Pod's a moment ago: NVML may list them for longer than they
        live, and gives no start time to tell them from a successor by.
        """
        holders: list[Holder] = []
        strangers: list[Stranger] = []
        for holder in snapshot.holders:
            place = self._processes.place(holder.pid)
            if pod_uid in place.pods or holder.pid in own_pids:
                holders.append(holder)
            elif not place.pods:
                identity = self._processes.identify(holder.pid)
                strangers.append(
                    Stranger(holder.gpu_uuid, holder.pid, identity, is_placed=place.is_known)
                )
        return Sighting(tuple(holders), tuple(strangers))
