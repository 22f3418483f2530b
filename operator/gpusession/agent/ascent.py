"""One climb of the ladder for one Pod: look, signal, look again; rules/ladder.py judges.

It holds what was seen on the way. It derives every pid itself, and knows nothing of
ledgers, requests or Redis: `release` does.
"""

import asyncio
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from gpusession.agent.gpu_view import GpuView, Sighting, Stranger, sighting_of
from gpusession.agent.nvml import Blind, BlindReason
from gpusession.agent.processes import (
    Hit,
    PodProcesses,
    ProcessId,
    close_all,
    send_all,
    wait_for_exits,
)
from gpusession.api.session import Stage
from gpusession.metrics import RELEASE_STAGE_SECONDS
from gpusession.rules.ladder import (
    CLEAN_READS,
    Evidence,
    Rung,
    StageResult,
    is_clean,
)

_PAUSES = (0.002, 0.005, 0.01, 0.02)
"""Seconds between looks while something is left; the last one repeats."""

_LAST_LOOK = 0.02
"""Seconds: none starts later before the deadline, as one that is cut off sees nothing."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look found."""

    blind: str | None
    holding: int = 0
    alive: int = 0
    unlisted_bytes: int = 0
    strangers: tuple[Stranger, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether it could see, and nothing of the Session is left."""
        return self.blind is None and is_clean(
            holding=self.holding,
            alive=self.alive,
            unattributed=len(self.strangers),
            unlisted_bytes=self.unlisted_bytes,
        )


@dataclass(slots=True)
class _Running:
    """The stage that runs: until when it may, and what has come of it."""

    deadline_at: float
    result: StageResult = StageResult.DONE


class Ascent:
    """Climbs once for one Pod; its stages are called in the order of `rules.ladder.rungs`."""

    def __init__(
        self,
        pod_uid: str,
        *,
        gpu_uuids: Collection[str],
        baseline: Collection[ProcessId],
        view: GpuView,
        processes: PodProcesses,
    ) -> None:
        self.gpu_uuids = set(gpu_uuids)
        self.bytes_before: int | None = None
        self.bytes_after = 0
        self._hit = Hit()
        self.stages: list[Stage] = []
        self._began_at = time.monotonic()
        self._pod_uid = pod_uid
        self._baseline = frozenset(baseline)
        self._view = view
        self._processes = processes
        self._last = _Look("nobody has looked yet")
        self._holder_pids: set[int] = set()
        self._saw_life = False
        self._clean_reads = 0
        self._clean_since = self._clean_until = 0.0

    @property
    def elapsed(self) -> timedelta:
        """Since the climb began."""
        return timedelta(seconds=time.monotonic() - self._began_at)

    @property
    def saw_holding(self) -> bool:
        """Whether any look of this climb found the Pod in NVML's lists."""
        return bool(self._holder_pids)

    @property
    def saw_life(self) -> bool:
        """Whether any look found a process of the Pod; a blind one counts the living too."""
        return self._saw_life or bool(self._hit.processes)

    @property
    def is_blind(self) -> bool:
        """Whether the last look could not see."""
        return self._last.blind is not None

    @property
    def is_clean(self) -> bool:
        """Whether the last look could see and found nothing."""
        return self._last.is_clean

    @property
    def remarks(self) -> tuple[str, ...]:
        """Who is in the way by pid, for a human: on the Session's GPUs, or out of our reach."""
        refused = sorted(process.pid for process in self._hit.refused if self._lives(process))
        named = {
            "pids of no Pod": [stranger.pid for stranger in self._last.strangers],
            "pids that the agent may not signal": refused,
        }
        return tuple(f"{what}: {tuple(pids)}" for what, pids in named.items() if pids)

    @property
    def processes_ended(self) -> int:
        """How many of the processes that were signalled have exited."""
        return sum(not self._lives(process) for process in self._hit.processes)

    def _lives(self, process: ProcessId) -> bool:
        return self._processes.identify(process.pid) == process

    def evidence(self, *, held_before: bool, may_restart: bool, rebooted: bool) -> Evidence:
        """Put together what was seen, for the verdict."""
        return Evidence(
            ever_held=held_before or self.saw_holding,
            holding=self._last.holding,
            alive=self._last.alive,
            unattributed=len(self._last.strangers),
            unlisted_bytes=self._last.unlisted_bytes,
            blind=self._last.blind,
            clean_reads=self._clean_reads,
            clean_for=timedelta(seconds=self._clean_until - self._clean_since),
            may_restart=may_restart,
            rebooted=rebooted,
        )

    async def resolve(self, rung: Rung) -> None:
        """Look for the first time, before anything is signalled: these are the bytes before."""
        with self._stage(rung) as running:
            await self._look(running.deadline_at)
            running.result = StageResult.BLIND if self.is_blind else StageResult.DONE

    async def sigterm(self, rung: Rung) -> None:
        """Ask every process of the Pod to exit, and wait for that."""
        with self._stage(rung) as running:
            living = self._processes.living(self._pod_uid, also=self._holder_pids)
            held = self._processes.open(living.pids, self._pod_uid)
            try:
                self._hit |= send_all(held, signal.SIGTERM)
                in_time = await wait_for_exits(held, deadline_at=running.deadline_at)
            finally:
                close_all(held)
            running.result = _result_of(found=bool(living.pids), gone=in_time)

    async def sigkill(self, rung: Rung) -> None:
        """Kill what is left, forks that race it included."""
        with self._stage(rung) as running:
            found = self._processes.living(self._pod_uid, also=self._holder_pids).pids
            self._hit |= await self._processes.kill(
                self._pod_uid, also=self._holder_pids, deadline_at=running.deadline_at
            )
            left = self._processes.living(self._pod_uid, also=self._holder_pids).pids
            running.result = _result_of(found=bool(found), gone=not left)

    async def verify(self, rung: Rung, *, apart: timedelta) -> None:
        """Look until two clean reads lie so far apart, or the time is up."""
        pauses = iter(_PAUSES)
        again = False
        with self._stage(rung) as running:
            while True:
                began_at = time.monotonic()
                await self._look(running.deadline_at, again=again)
                again = True
                looked_at = time.monotonic()
                took = looked_at - began_at
                left = apart.total_seconds() - self._clean_seconds
                if self._clean_reads >= CLEAN_READS and left <= 0:
                    return
                pause = left if self.is_clean else next(pauses, _PAUSES[-1])
                # The second clean read is worth a try even when it may be cut off.
                next_takes = _LAST_LOOK if self.is_clean else max(_LAST_LOOK, 2 * took)
                if looked_at + pause + next_takes >= running.deadline_at:
                    break
                await asyncio.sleep(pause)
            running.result = StageResult.BLIND if self.is_blind else StageResult.LATE

    @property
    def _clean_seconds(self) -> float:
        return self._clean_until - self._clean_since

    async def _look(self, deadline_at: float, *, again: bool = False) -> None:
        """Look once; `again` in a stage, one that is cut off leaves what was amiss before it.

        What was clean before it is blind after it: that may have changed meanwhile.
        """
        began_at = time.monotonic()
        scene = await self._view.look(self.gpu_uuids, deadline_at=deadline_at)
        is_cut_off = isinstance(scene, Blind) and scene.reason is BlindReason.CUT_OFF
        if again and is_cut_off and not self.is_clean:
            return
        sighting = None
        if not isinstance(scene, Blind):
            own = self._holder_pids | {process.pid for process in self._hit.processes}
            sighting = sighting_of(scene, self._pod_uid, own_pids=own)
            self._note(sighting)
        living = self._processes.living(self._pod_uid, also=self._holder_pids)
        self._last = _Look(
            blind=f"NVML: {scene.detail}" if isinstance(scene, Blind) else None,
            holding=0 if sighting is None else len(sighting.holders),
            alive=len(living.pids) + living.hidden,
            unlisted_bytes=0
            if isinstance(scene, Blind)
            else max((scene.excess.get(uuid, 0) for uuid in self.gpu_uuids), default=0),
            strangers=() if sighting is None else self._against_us(sighting),
        )
        self._saw_life |= self._last.alive > 0 or self._last.holding > 0
        self._count_clean(began_at)

    def _note(self, sighting: Sighting) -> None:
        self.gpu_uuids |= sighting.gpu_uuids
        self._holder_pids |= {holder.pid for holder in sighting.holders}
        self.bytes_after = sighting.memory_bytes
        if self.bytes_before is None:
            self.bytes_before = sighting.memory_bytes

    def _against_us(self, sighting: Sighting) -> tuple[Stranger, ...]:
        """Pick the strangers that may be ours: on our GPUs all but those of before the bind.

        Of a Session without known GPUs any may be; those in a cgroup of the host are not.
        """
        return tuple(
            stranger
            for stranger in sighting.strangers
            if stranger.id not in self._baseline
            and (
                stranger.gpu_uuid in self.gpu_uuids
                or (not self.gpu_uuids and not stranger.is_placed)
            )
        )

    def _count_clean(self, began_at: float) -> None:
        if not self._last.is_clean:
            self._clean_reads = 0
            self._clean_since = self._clean_until = 0.0
            return
        if self._clean_reads == 0:
            self._clean_since = time.monotonic()  # the end of the first, the start of the last
            began_at = self._clean_since
        self._clean_reads += 1
        self._clean_until = began_at

    @contextmanager
    def _stage(self, rung: Rung) -> Iterator[_Running]:
        began_at = time.monotonic()
        running = _Running(began_at + rung.limit.total_seconds())
        yield running
        took = time.monotonic() - began_at
        RELEASE_STAGE_SECONDS.labels(rung.stage).observe(took)
        self.stages.append(
            Stage(name=rung.stage, milliseconds=round(took * 1000, 3), result=running.result)
        )


def _result_of(*, found: bool, gone: bool) -> StageResult:
    if not found:
        return StageResult.NOTHING_TO_DO
    return StageResult.DONE if gone else StageResult.LATE
