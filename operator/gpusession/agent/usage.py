"""Notes how much each bound Session works on its GPUs, and answers GET /v1/usage from that.

The observer's loop looks; an answer only reads what was noted, so callers never take each
other's samples. `rules/usage.py` says what it amounts to. A look that fails is noted as blind.
"""

from collections import Counter
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import structlog

from gpusession.agent.gpu_view import Entry, Scene
from gpusession.agent.ledger import Ledger
from gpusession.agent.ledger_row import Row, RowState
from gpusession.agent.nvml import Blind, GpuActivity, Nvml, Use
from gpusession.agent.processes import PodProcesses
from gpusession.api.usage import Busy, SessionUsage, UsageReport
from gpusession.metrics import NVML_BLIND, SESSION_USAGE
from gpusession.rules.usage import GpuWork, Look, UsageLimits, judge, work_on, work_on_all

CLOCK_TOLERANCE = 1.0
"""Seconds by which wall clock and monotonic clock may part between two looks: NTP slews less."""

RATE_PERIOD = timedelta(seconds=1) / 6
"""The least that the utilisation of a whole GPU covers; the driver takes up to a second."""

log = structlog.get_logger(__name__)


class _Moment(NamedTuple):
    wall: float
    monotonic: float


class _Sampled(NamedTuple):
    """One line of the driver's samples; `pods` is None where nobody can be named for it."""

    percent: int
    pods: frozenset[str] | None


class UsageWatch:
    """Keeps the looks of one window for each bound Session, in memory only."""

    def __init__(
        self,
        *,
        boot_id: str,
        nvml: Nvml,
        processes: PodProcesses,
        ledger: Ledger,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        limits: UsageLimits,
    ) -> None:
        self._boot_id = boot_id
        self._nvml = nvml
        self._processes = processes
        self._ledger = ledger
        self._now = now
        self._monotonic = monotonic
        self._limits = limits
        self._last: _Moment | None = None
        self._listed: dict[int, Entry] = {}
        self._looks: dict[tuple[str, str], list[Look]] = {}

    async def look(self, scene: Scene, bound: Collection[Row]) -> None:
        """Note what the bound Sessions did since the last look; `scene` was seen just now."""
        last, now = self._last, _Moment(self._now(), self._monotonic())
        before, self._listed = self._listed, {entry.holder.pid: entry for entry in scene.entries}
        self._last = now
        if last is None:
            return  # since when would the driver's samples be?
        if not _agree(last, now):
            self.lose_sight()
            return
        activity = await self._nvml.activity(datetime.fromtimestamp(last.wall, tz=UTC))
        if isinstance(activity, Blind):
            NVML_BLIND.labels(activity.reason).inc()
            log.warning("GPU work not seen", error=activity.detail, reason=activity.reason)
            self.lose_sight()
            return
        sampled = {gpu.uuid: self._named(gpu, before) for gpu in activity}
        gpus = {gpu.uuid: gpu for gpu in activity}
        self._looks = {
            (key := (row.session_uid, row.claim.pod_uid)): [
                *self._recent(key),
                self._seen(row, scene, gpus, sampled, span=(last, now)),
            ]
            for row in bound
        }

    def lose_sight(self) -> None:
        """Note that nobody could look: no silence may reach over this moment."""
        at = timedelta(seconds=self._monotonic())
        blind = Look(at, at, None, timedelta())
        self._looks = {key: [*self._recent(key), blind] for key in self._looks}

    async def report(self) -> UsageReport:
        """Answer for every bound Session of the ledger; raises Retry where that is away."""
        now = timedelta(seconds=self._monotonic())
        rows = [row for row in await self._ledger.rows() if row.state is RowState.BOUND]
        sessions = []
        for row in rows:
            looks = self._looks.get((row.session_uid, row.claim.pod_uid), ())
            usage = judge(looks, now=now, limits=self._limits)
            sessions.append(
                SessionUsage(
                    session_uid=row.session_uid,
                    busy=usage.busy,
                    utilization_percent=usage.percent,
                    sampled_seconds=usage.sampled.total_seconds(),
                )
            )
        by_answer = Counter(session.busy for session in sessions)
        for busy in Busy:
            SESSION_USAGE.labels(busy).set(by_answer[busy])
        return UsageReport(boot_id=self._boot_id, sessions=tuple(sessions))

    def _recent(self, key: tuple[str, str]) -> list[Look]:
        """Give the earlier looks that the window of the next one may still reach into."""
        oldest = timedelta(seconds=self._monotonic()) - self._limits.window
        return [look for look in self._looks.get(key, ()) if look.at > oldest]

    def _seen(
        self,
        row: Row,
        scene: Scene,
        gpus: dict[str, GpuActivity],
        sampled: dict[str, list[_Sampled]],
        *,
        span: tuple[_Moment, _Moment],
    ) -> Look:
        pod_uid = row.claim.pod_uid
        held = {e.holder.gpu_uuid for e in scene.entries if pod_uid in e.place.pods}
        used = held | set(row.gpu_uuids) or set(gpus)
        works = [
            _work(gpus[uuid], sampled[uuid], scene, pod_uid) if uuid in gpus else None
            for uuid in used
        ]
        busy_percent = self._limits.busy_percent
        percent = work_on_all(
            (None if work is None else work_on(work, busy_percent=busy_percent) for work in works),
            busy_percent=busy_percent,
        )
        since, at = (timedelta(seconds=moment.monotonic) for moment in span)
        by_process = all(work is not None and work.is_told_by_process for work in works)
        return Look(since, at, percent, at - since if by_process else min(at - since, RATE_PERIOD))

    def _named(self, gpu: GpuActivity, before: dict[int, Entry]) -> list[_Sampled]:
        samples = (gpu.processes or {}).items()
        return [_Sampled(percent, self._pods(pid, before.get(pid))) for pid, percent in samples]

    def _pods(self, pid: int, before: Entry | None) -> frozenset[str] | None:
        """Tell in which Pods the process of a sample is; none: it is the host's own.

        1. The last look lists a process of a Session. 2. It works and exits. 3. Its pid goes
        to a process of another Pod. The sample may be of either, so it is nobody's. Where the
        pid is free, it was the one that the last look, or this one, has listed.
        """
        identity, place = self._processes.identify(pid), self._processes.place(pid)
        if identity is None:
            listed = before or self._listed.get(pid)
            place = place if listed is None else listed.place
        elif before is not None and before.id is not None and before.id != identity:
            return None
        return place.pods if place.pods or place.is_known else None


def _agree(last: _Moment, now: _Moment) -> bool:
    """Tell whether the wall clock, which the driver's samples carry, ran as time did."""
    drift = (now.wall - last.wall) - (now.monotonic - last.monotonic)
    return abs(drift) <= CLOCK_TOLERANCE


def _work(gpu: GpuActivity, sampled: list[_Sampled], scene: Scene, pod_uid: str) -> GpuWork:
    entries = [entry for entry in scene.entries if entry.holder.gpu_uuid == gpu.uuid]
    mine = [entry for entry in entries if pod_uid in entry.place.pods]
    own = [line.percent for line in sampled if line.pods is not None and pod_uid in line.pods]
    others = [
        line.percent for line in sampled if line.pods is not None and pod_uid not in line.pods
    ]
    unclaimed = [line.percent for line in sampled if line.pods is None]
    return GpuWork(
        device_percent=gpu.device_percent,
        own_percent=None if gpu.processes is None else max(own, default=0),
        others_percent=max(others, default=0),
        unclaimed_percent=max(unclaimed, default=0),
        is_alone=bool(mine) and len(mine) == len(entries),
        is_by_server=any(Use.MPS in entry.holder.kinds for entry in mine),
    )
