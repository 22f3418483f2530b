"""Reads what Redis knows of a Session's clients, and has it judged.

The answer counts only if it came from the server that is being watched: the clock of the
answer must fit the latest tick. The claim checks the rest where it is made.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import structlog

from gpusession.api.session import Reason, RecordState, Session
from gpusession.controller.brakes import Brakes
from gpusession.controller.usage import UsageKeeper
from gpusession.errors import StoreUnavailable
from gpusession.rules.continuity import Tolerances, Watch, heard_from, is_recent
from gpusession.rules.expiry import Overdue, Unheard, Vitals, grace_is_over, judged
from gpusession.rules.observation import ABSENT, UNSEEN, Life, Look
from gpusession.store.sessions import SessionStore, Sighting

BRAKED = frozenset({Reason.HEARTBEAT_LOST, Reason.DISCONNECTED})
"""Silence of many at once may be the observer's own; idleness and lifetimes may not."""

log = structlog.get_logger()


class Lives:
    """Looks at records for the observer; UNSEEN where Redis cannot be believed now."""

    def __init__(
        self,
        store: SessionStore,
        *,
        watching: Callable[[], Watch],
        brakes: Brakes,
        usage: UsageKeeper,
        tolerances: Tolerances,
    ) -> None:
        self._store = store
        self._watching = watching
        self._brakes = brakes
        self._usage = usage
        self._tolerances = tolerances

    async def look(self, session: Session) -> Life | Look:
        """Give the record and what it proves; ABSENT where Redis has none."""
        uid = session.metadata.uid
        try:
            sighting = await self._store.read(uid)
        except StoreUnavailable as error:
            log.warning("record not read", error=str(error))
            return UNSEEN
        if sighting is None:
            return ABSENT
        whole = self._watching()
        if not self._fits(whole, sighting):
            return UNSEEN
        gateway = sighting.record.gw or ""
        watch = self._since_relief(whole, session, gateway)
        vitals = as_vitals(sighting)
        liveness = judged(vitals, watch, session.spec)
        over = grace_is_over(vitals, whole, session.spec)
        life = Life(vitals, liveness, watched_since=whole.since, grace_over=over)
        if not isinstance(liveness, Overdue | Unheard):
            self._brakes.heard(uid)
        if not isinstance(liveness, Overdue) or vitals.stage is not RecordState.ACTIVE:
            return life  # an end that has begun waits for no turn
        held, pauses = await self._held(session, liveness, gateway)
        return replace(life, held=held, pauses=pauses)

    def _since_relief(self, watch: Watch, session: Session, gateway: str) -> Watch:
        """Give whoever a full brake has held a whole threshold from the moment it opened."""
        node = session.status.node_name or ""
        relieved = self._brakes.relieved(node=node, gateway=gateway)
        if relieved is None or watch.last is None:
            return watch
        ago = timedelta(seconds=watch.last.answered_at - relieved)
        return heard_from(watch, watch.last.now - ago)

    def _fits(self, watch: Watch, sighting: Sighting) -> bool:
        """Tell whether the answer's clock goes on from the latest tick's."""
        if watch.last is None:
            return True  # nothing is proven then anyway
        now = asyncio.get_running_loop().time()
        if not is_recent(watch.last, now, tolerances=self._tolerances):
            return False  # Redis was away, and the next tick is going to say so
        passed = (sighting.now - watch.last.now).total_seconds()
        ours = now - watch.last.answered_at
        error = self._tolerances.clock_error + self._tolerances.longest_gap
        return (
            -self._tolerances.clock_error.total_seconds()
            <= passed
            <= (ours + error.total_seconds())
        )

    async def _held(
        self, session: Session, overdue: Overdue, gateway: str
    ) -> tuple[str | None, bool]:
        uid, node = session.metadata.uid, session.status.node_name or ""
        if overdue.reason not in BRAKED or session.metadata.expiry_override_by:
            return None, False
        held = self._brakes.held(uid)
        if held is not None:
            # Whatever brought us here, it is silent, counts as such, and waits for its turn.
            self._brakes.note(uid, node=node, gateway=gateway, overdue=True)
            return held.message, held.pauses
        if self._brakes.is_whole_node_silent(node) and not await self._usage.answers(node):
            return f"nobody on node {node} is heard, and its agent does not answer", True
        return None, False


def as_vitals(sighting: Sighting) -> Vitals:
    """Give the evidence in a record."""
    record = sighting.record
    return Vitals(
        now=sighting.now,
        stage=record.state,
        counter=record.n,
        beat=record.hb,
        first_due=record.first,
        activity=record.act,
        busy_until=record.busy,
        disconnected=record.dc,
        gpu_busy=record.gpu,
        gpu_seen=record.gpuseen,
        gpu_since=record.gpusince,
        pending_until=record.until,
        closed=record.close,
        revoked=record.rev,
        doubted=record.doubt,
        announced=sighting.announced,
    )
