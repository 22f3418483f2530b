"""Lists everything once in a while: what a watch has missed costs time, nothing else.

Kopf yields no DELETED for what vanished while it listed again after a 410; marking what
the list shows and sweeping the rest finds those too.
"""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import msgspec
import structlog

from gpusession.api.session import Phase, Session
from gpusession.controller.intake import Intake
from gpusession.controller.records import RecordKeeper
from gpusession.controller.sessions import SessionCache
from gpusession.errors import GpuSessionError
from gpusession.kube.reader import KubeReader
from gpusession.metrics import REPAIRS, SESSIONS, WATCH_BEHIND

log = structlog.get_logger()

_session = msgspec.json.Decoder(Session)


class _Uid(msgspec.Struct, frozen=True):
    uid: str


class _Identity(msgspec.Struct, frozen=True):
    """As much of a Session as can be read whatever the rest holds."""

    metadata: _Uid


_identity = msgspec.json.Decoder(_Identity)


class Sweep:
    """Compares list, cache and records; also tells how long the watch has been behind."""

    def __init__(
        self,
        *,
        reader: KubeReader,
        sessions: SessionCache,
        intake: Intake,
        records: RecordKeeper,
        rebind: Callable[[str], None],
        period: timedelta,
        rebind_period: timedelta,
    ) -> None:
        self._reader = reader
        self._sessions = sessions
        self._intake = intake
        self._records = records
        self._rebind = rebind
        self._period = period
        self._rebind_every = max(1, round(rebind_period / period))
        self._behind_since: float | None = None

    @property
    def behind_since(self) -> float | None:
        """Loop time since when the list has shown what the watch has not, if it has."""
        return self._behind_since

    async def run(self) -> None:
        """Sweep until cancelled."""
        rounds = 0
        while True:
            await asyncio.sleep(self._period.total_seconds())
            rounds += 1
            try:
                await self.sweep()
            except (GpuSessionError, msgspec.MsgspecError) as error:
                log.warning("sweep not finished", error=str(error))
                continue
            if rounds % self._rebind_every == 0:
                self._rebind_all()

    async def try_once(self) -> bool:
        """Sweep; False where the apiserver gave no whole list."""
        try:
            await self.sweep()
        except GpuSessionError as error:
            log.warning("sweep not finished", error=str(error))
            return False
        return True

    async def sweep(self) -> None:
        """List once and mend every difference."""
        suspects = {s.metadata.uid for s in self._sessions}
        late = {uid for uid in suspects if self._sessions.is_ahead_of_watch(uid)}
        found: set[str] = set()
        async for raw in self._reader.sessions():
            found.add(_identity.decode(raw).metadata.uid)
            self._take_in(raw)
        for uid in suspects - found:
            REPAIRS.labels("missed_delete").inc()
            self._intake.gone(uid)
        self._sessions.exhume(listed=found)
        self._note_lag(late & found)
        await self._records.repair(listed=found)
        self._count()

    def _take_in(self, raw: msgspec.Raw) -> None:
        try:
            self._intake.listed(_session.decode(raw))
        except msgspec.ValidationError as error:
            log.error("a Session cannot be read; is the CRD of another version?", error=str(error))

    def _note_lag(self, late: set[str]) -> None:
        # Ahead of the watch before and after a whole list: no event arrived in between.
        if not any(self._sessions.is_ahead_of_watch(uid) for uid in late):
            self._behind_since = None
            WATCH_BEHIND.set(0)
            return
        now = asyncio.get_running_loop().time()
        self._behind_since = now if self._behind_since is None else self._behind_since
        WATCH_BEHIND.set(now - self._behind_since)

    def _rebind_all(self) -> None:
        for session in self._sessions:
            if session.status.phase is Phase.ACTIVE:
                self._rebind(session.metadata.uid)

    def _count(self) -> None:
        counts = dict.fromkeys(Phase, 0)
        for session in self._sessions:
            counts[session.status.phase or Phase.PENDING] += 1
        for phase, count in counts.items():
            SESSIONS.labels(phase).set(count)
