"""Sweeps the deadlines: watches Redis, counts who is silent, and makes keys ready.

It decides nothing about a Session. What is due is leased, not removed: a sweep that is lost,
or a controller that dies, costs one lease. The event stream is quicker, the sweep is the truth.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from gpusession.api.session import Phase, Reason, Session
from gpusession.controller.brakes import Brakes
from gpusession.controller.census import Census
from gpusession.controller.lives import BRAKED
from gpusession.controller.queue import Priority
from gpusession.controller.sessions import SessionCache
from gpusession.errors import StoreUnavailable
from gpusession.metrics import GATEWAYS_LAPSED, REDIS_UP, SWEEP_SECONDS, WATCH_BREAKS
from gpusession.rules.continuity import Tick, Tolerances, Watch, is_recent, restarted, watched
from gpusession.rules.expiry import heartbeat_period, heartbeat_threshold, idle_timeout
from gpusession.rules.returning import is_cancellable
from gpusession.store.deadlines import DeadlineStore, Due, DueKind
from gpusession.store.gateways import GatewayRegistry
from gpusession.store.pulse import Pulse
from gpusession.store.sessions import Proof

AT_ONCE = 4000
"""Due records per sweep: 20 ms of the server's time; the rest comes with the next one."""

LATE_PERIODS = 1.25
"""Silent for so many periods is late: beats that are spread over a period by nature come with
a tenth of it more or less, so a quarter is a beat that is missing."""

PRIORITY: dict[str, Priority] = {
    Reason.REVOKED: Priority.REVOKED,
    Reason.DISCONNECTED: Priority.DISCONNECTED,
    Reason.HEARTBEAT_LOST: Priority.HEARTBEAT,
    Reason.IDLE: Priority.IDLE,
    Reason.LIFETIME_EXCEEDED: Priority.IDLE,
}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Source:
    """What is swept: three views of one Redis."""

    pulse: Pulse
    deadlines: DeadlineStore
    gateways: GatewayRegistry


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often to sweep, and how unevenly that may go."""

    period: timedelta
    tolerances: Tolerances


class Sweeper:
    """The one task of a leader that looks at all deadlines."""

    def __init__(
        self,
        source: Source,
        *,
        brakes: Brakes,
        sessions: SessionCache,
        census: Census,
        suspect: Callable[[str, Priority], None],
        restore: Callable[[], None],
        cadence: Cadence,
    ) -> None:
        self._pulse = source.pulse
        self._deadlines = source.deadlines
        self._gateways = source.gateways
        self._brakes = brakes
        self._sessions = sessions
        self._census = census
        self._suspect = suspect
        self._restore = restore
        self._period = cadence.period
        self._tolerances = cadence.tolerances
        self._watch = Watch()
        self._proof: Proof | None = None
        self._must_recall = False

    @property
    def watch(self) -> Watch:
        """How long Redis has been watched without a break."""
        return self._watch

    def proof(self, since: datetime | None) -> Proof | None:
        """Give what a claim rests on: our latest tick, and of the watch that began then.

        None while Redis is not being watched, or if the watch has been broken since.
        """
        began, last = self._watch.since, self._watch.last
        if began is None or last is None or since not in (None, began):
            return None
        now = asyncio.get_running_loop().time()
        return self._proof if is_recent(last, now, tolerances=self._tolerances) else None

    async def run(self) -> None:
        """Sweep until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._census.take_if_due()
                await self.sweep()
            except StoreUnavailable as error:
                REDIS_UP.set(0)
                log.warning("sweep of deadlines not finished", error=str(error))
            took = loop.time() - began
            SWEEP_SECONDS.observe(took)
            await asyncio.sleep(max(self._period.total_seconds() - took, 0.01))

    async def sweep(self) -> None:
        """Tick, help out the Sessions of dead gateways, and wake whoever must be looked at."""
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        seen = await self._pulse.tick()
        tick = Tick(
            run_id=seen.run_id,
            replication_id=seen.replication_id,
            is_primary=seen.role == "master",
            remembers=seen.was_ours,
            now=seen.now,
            gateways=seen.gateways,
            sent_at=sent_at,
            answered_at=loop.time(),
        )
        self._proof = seen.proof
        REDIS_UP.set(1)
        self._take_in(tick)
        if self._must_recall:
            await self._deadlines.recall()
            self._must_recall = False
        await self._help_the_abandoned(seen.lapsed)
        later: dict[str, datetime] = {}
        for row in await self._deadlines.due(AT_ONCE):
            if (ripe := self._take(row)) is not None:
                later[row.uid] = ripe
        await self._deadlines.postpone(later)
        turns, left_full = self._brakes.advance()
        if left_full:
            self._watch = restarted(self._watch)
            self._brakes.forget_all()
        for uid in turns:
            self._suspect(uid, Priority.HEARTBEAT)
        for uid in self._census.to_tell():
            self._suspect(uid, Priority.RESYNC)

    def _take_in(self, tick: Tick) -> None:
        self._watch = watched(self._watch, tick, tolerances=self._tolerances)
        if (why := self._watch.broken_by) is None:
            return
        WATCH_BREAKS.labels(why).inc()
        log.warning("the watch of Redis begins anew; nobody is overdue for now", reason=why)
        self._brakes.forget_all()
        if self._watch.since is not None:
            self._must_recall = True
            self._restore()

    async def _help_the_abandoned(self, lapsed: tuple[str, ...]) -> None:
        for gateway in lapsed:
            GATEWAYS_LAPSED.inc()
            log.warning("a gateway is gone; its Sessions have a fresh threshold", gateway=gateway)
            while await self._gateways.lapse(gateway):
                pass

    def _take(self, row: Due) -> datetime | None:
        """Wake or count a Session; gives when to look again where it is too early to tell."""
        session = self._sessions.get(row.uid)
        if session is None:
            return None  # the resync forgets it, or the watch brings it
        if row.kind is DueKind.LATE or (row.kind is DueKind.DUE and row.why in BRAKED):
            return self._note(row, session)
        if row.why == Reason.IDLE and (ripe := self._idle_ripe(session)) is not None:
            return ripe
        if session.status.phase is Phase.PENDING_DESTROY and not is_cancellable(session.status):
            return None  # its release goes on by itself, and needs no Redis
        self._suspect(row.uid, PRIORITY.get(row.why, Priority.EXPLICIT))
        return None

    def _idle_ripe(self, session: Session) -> datetime | None:
        """Say from when on idleness can be proven, if that is still to come."""
        now, began = self._watch.now, self._watch.since
        if session.spec.idle is not None and "Client" in session.spec.idle.signals:
            began = self._watch.heard_since
        ripe = None if now is None else (began or now) + idle_timeout(session.spec)
        return ripe if ripe and now and now < ripe else None

    def _note(self, row: Due, session: Session) -> datetime | None:
        """Count a silence, if it was watched for long enough to be one."""
        now, heard = self._watch.now, self._watch.heard_since
        if now is None or heard is None:
            return None  # without a gateway nobody can be heard; the lease brings it again
        late, ripe = heard, heard
        if row.why != Reason.DISCONNECTED:
            ripe = heard + heartbeat_threshold(session.spec)
            late = min(ripe, heard + heartbeat_period(session.spec) * LATE_PERIODS)
        if now >= late:
            overdue = row.kind is DueKind.DUE and now >= ripe
            self._brakes.note(row.uid, node=row.node, gateway=row.gateway, overdue=overdue)
            if overdue and self._brakes.held(row.uid) is None:
                self._suspect(row.uid, Priority.HEARTBEAT)  # its turn came, to no effect
        if row.kind is DueKind.DUE and now < ripe:
            return late if now < late else ripe
        return None
