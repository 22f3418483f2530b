"""Notes who holds GPU memory while Sessions live: what makes a later Freed worth saying."""

import asyncio
from collections import Counter
from datetime import timedelta

import structlog

from gpusession.agent.cgroups import Members
from gpusession.agent.gpu_view import GpuView, Sighting, sighting_of
from gpusession.agent.ledger import Ledger
from gpusession.agent.ledger_row import Row, RowState
from gpusession.agent.nvml import Blind
from gpusession.agent.pid_namespace import PidNamespace
from gpusession.agent.processes import PodProcesses
from gpusession.agent.usage import UsageWatch
from gpusession.errors import Retry
from gpusession.metrics import LEDGER_ROWS

log = structlog.get_logger(__name__)


class Observer:
    """Looks at all bound Pods with one look, again and again."""

    def __init__(
        self,
        *,
        boot_id: str,
        namespace: PidNamespace,
        view: GpuView,
        processes: PodProcesses,
        ledger: Ledger,
        usage: UsageWatch,
        period: timedelta,
    ) -> None:
        self._boot_id = boot_id
        self._namespace = namespace
        self._view = view
        self._processes = processes
        self._ledger = ledger
        self._usage = usage
        self._period = period

    async def run(self) -> None:
        """Observe for ever; what fails is tried again after the period."""
        while True:
            await self.attempt()
            await asyncio.sleep(self._period.total_seconds())

    async def attempt(self) -> None:
        """Observe once, before the first release too; a failure is only told."""
        try:
            await self.observe()
            await self._ledger.prune()
        except (Retry, OSError) as error:
            log.warning("nothing observed", error=str(error))

    async def observe(self) -> None:
        """Look once and note the sightings; who cannot look notes nothing."""
        rows = await self._ledger.rows()
        _count(rows)
        if await self._namespace.doubt() is not None:
            self._usage.lose_sight()
            return
        await self._note_returned([row for row in rows if row.state is not RowState.DONE])
        scene = await self._view.look()  # without Sessions too: that is when GPUs are idle
        if isinstance(scene, Blind):
            log.warning("nothing observed", error=scene.detail, reason=scene.reason)
            self._usage.lose_sight()
            return
        bound = [row for row in rows if row.state is RowState.BOUND]
        sightings = [(row, sighting_of(scene, row.claim.pod_uid)) for row in bound]
        await self._ledger.sight(
            {
                row.session_uid: (seen.gpu_uuids, seen.memory_bytes)
                for row, seen in sightings
                if _is_news(row, seen)
            }
        )
        await self._usage.look(scene, bound)

    async def _note_returned(self, living: list[Row]) -> None:
        """Note which Pods have run since a reboot: theirs is no memory that it took.

        kubelet may start a Pod again and end it again before a release looks for it.
        """
        for row in living:
            claim = row.claim
            if claim.boot_id != self._boot_id and _runs(self._processes.living(claim.pod_uid)):
                await self._ledger.bind(claim._replace(boot_id=self._boot_id), baseline=())


def _is_news(row: Row, seen: Sighting) -> bool:
    """Tell whether the row lacks what was seen; most looks see the same as the one before.

    A device that kubelet assigned stands in the row before anybody held anything on it.
    """
    first = bool(seen.gpu_uuids) and not row.seen_holding
    return first or bool(seen.gpu_uuids - set(row.gpu_uuids)) or seen.memory_bytes > row.max_bytes


def _runs(members: Members) -> bool:
    return bool(members.pids or members.hidden)


def _count(rows: list[Row]) -> None:
    by_state = Counter(row.state for row in rows)
    for state in RowState:
        LEDGER_ROWS.labels(state).set(by_state[state])
