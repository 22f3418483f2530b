"""Keeps Redis' control records in step with the Sessions; never in the way of an end.

A Session needs no Redis to be destroyed. So each single write here is short and may fail;
`repair` makes good later what did not happen.
"""

import asyncio
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from datetime import timedelta

import structlog

from gpusession.api.session import Heartbeat, Idle, Phase, Session, SessionSpec, SessionStatus
from gpusession.controller.sessions import SessionCache
from gpusession.errors import StoreUnavailable
from gpusession.metrics import REDIS_UP, REPAIRS
from gpusession.store.sessions import LivenessSpec, SessionStore

PATIENCE = timedelta(milliseconds=250)
"""For one write on the way to an end: a quarter of what a release itself may take."""

REST = timedelta(seconds=2)
"""After a failure nobody tries for this long, so that a dead Redis delays nobody twice."""

log = structlog.get_logger()


class RecordKeeper:
    """Opens, forgets and repairs records; raises nothing."""

    def __init__(self, store: SessionStore, sessions: SessionCache) -> None:
        self._store = store
        self._sessions = sessions
        self._down_until = float("-inf")

    async def open(self, session: Session, status: SessionStatus) -> bool:
        """Make sure of the record of an Active Session; False where Redis did not answer."""
        return await self._try(
            lambda: self._store.open(
                uid=session.metadata.uid,
                namespace=session.metadata.namespace,
                name=session.metadata.name,
                user=session.spec.user,
                node=status.node_name or "",
                lifetime=timedelta(seconds=session.spec.max_lifetime_seconds),
                liveness=_liveness(session.spec),
            )
        )

    async def forget(self, uid: str) -> bool:
        """Drop the record of a Session that has ended; False where Redis did not answer."""
        return await self._try(lambda: self._store.forget(uid))

    async def repair(self, *, listed: AbstractSet[str]) -> None:
        """Open what an Active Session lacks, drop what no Session stands behind.

        `listed` are the uids of a full list: what neither it nor the cache knows has no
        Session. The database of the records belongs to this one cluster alone.
        """
        try:
            recorded = await self._store.uids()
        except StoreUnavailable as error:
            REDIS_UP.set(0)
            log.warning("records not compared", error=str(error))
            return
        REDIS_UP.set(1)
        for uid in [session.metadata.uid for session in self._sessions]:
            session = self._sessions.get(uid)  # it may have ended while others were opened
            if session and session.status.phase is Phase.ACTIVE and uid not in recorded:
                REPAIRS.labels("record_missing").inc()
                await self.open(session, session.status)
        for uid in recorded:
            if self._has_ended(uid, listed):
                REPAIRS.labels("record_orphaned").inc()
                await self.forget(uid)

    def _has_ended(self, uid: str, listed: AbstractSet[str]) -> bool:
        known = self._sessions.get(uid)
        return uid not in listed if known is None else known.status.phase is Phase.DESTROYED

    async def _try(self, write: Callable[[], Awaitable[None]]) -> bool:
        now = asyncio.get_running_loop().time()
        if now < self._down_until:
            return False  # one slow failure is enough for everyone who comes right after
        try:
            async with asyncio.timeout(PATIENCE.total_seconds()):
                await write()
        except (StoreUnavailable, TimeoutError) as error:
            REDIS_UP.set(0)
            self._down_until = now + REST.total_seconds()
            log.warning("record not written; the resync repairs it", error=repr(error))
            return False
        REDIS_UP.set(1)
        return True


def _liveness(spec: SessionSpec) -> LivenessSpec:
    heartbeat = spec.heartbeat or Heartbeat(period_seconds=0)
    idle = spec.idle or Idle(timeout_seconds=0)
    period = timedelta(seconds=heartbeat.period_seconds)
    return LivenessSpec(
        heartbeat_period=period,
        heartbeat_threshold=period * heartbeat.failure_threshold,
        initial_delay=timedelta(seconds=heartbeat.initial_delay_seconds),
        idle_timeout=timedelta(seconds=idle.timeout_seconds),
        signals=idle.signals,
        disconnect_grace=timedelta(milliseconds=spec.disconnect_grace_milliseconds),
    )
