"""Keeps Redis' control records in step with the Sessions; never in the way of an end.

A Session needs no Redis to be destroyed. So each single write here is short and may fail;
`repair` makes good later what did not happen.
"""

import asyncio
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog

from gpusession.api.session import Phase, Reason, RecordState, Session, SessionStatus
from gpusession.controller.sessions import SessionCache
from gpusession.errors import StoreUnavailable
from gpusession.metrics import REDIS_UP, REPAIRS
from gpusession.rules.actions import Claim
from gpusession.rules.evidence import lifetime_end
from gpusession.rules.expiry import (
    heartbeat_period,
    heartbeat_threshold,
    idle_timeout,
    initial_delay,
    regrace,
)
from gpusession.rules.observation import Outcome
from gpusession.rules.returning import is_cancellable
from gpusession.store import sessions as store_sessions
from gpusession.store.sessions import LivenessSpec, Proof, SessionStore

PATIENCE = timedelta(milliseconds=250)
"""For one write on the way to an end: a quarter of what a release itself may take."""

CLAIM_PATIENCE = timedelta(seconds=1)
"""For a claim, which holds up no release; one whose answer is lost may have been made."""

REST = timedelta(seconds=2)
"""After a failure nobody tries for this long, so that a dead Redis delays nobody twice."""

FIRST_RECORD = timedelta(seconds=5)
"""A Session has its first record within this time of Active; one that it lacks later was lost."""

OUTCOMES = {
    store_sessions.Claim.WON: Outcome.WON,
    store_sessions.Claim.RETURNED: Outcome.RETURNED,
}
"""Whatever else Redis says of a claim proves nothing."""

T = TypeVar("T")

log = structlog.get_logger()


class RecordKeeper:
    """Opens, claims, forgets and repairs records; raises nothing.

    `proof` gives our latest tick, None where Redis is not being watched, or not by the watch
    that began then: a server that does not remember it is not the one that was judged.
    """

    def __init__(
        self,
        store: SessionStore,
        sessions: SessionCache,
        *,
        proof: Callable[[datetime | None], Proof | None],
        clock: Callable[[], datetime],
    ) -> None:
        self._proof = proof
        self._clock = clock
        self._store = store
        self._sessions = sessions
        self._down_until = float("-inf")
        self._wanted = asyncio.Event()

    async def open(self, session: Session, status: SessionStatus) -> bool:
        """Make sure of the record of a bound Session; False where Redis did not answer.

        In the grace of its end a new record is pending, and the grace begins again: whoever
        has lost it cannot know how much of it clients have had. One that is there says itself
        whether a client has returned.
        """
        opening = _opening(session, status, now=self._clock())
        if is_cancellable(session.status):
            opening |= {"state": RecordState.PENDING, "why": session.status.reason}
            opening["grace"] = regrace(session.spec)
        return await self._ask(lambda: self._store.open(**opening), otherwise=None) is not None

    async def claim(self, uid: str, action: Claim) -> Outcome:
        """Take the right to end a silent Session; UNKNOWN proves nothing, and ends nobody."""
        proof = self._proof(action.watched_since)
        if proof is None:
            return Outcome.UNKNOWN
        return await self._ask(
            lambda: self._claimed(uid, action, proof),
            otherwise=Outcome.UNKNOWN,
            patience=CLAIM_PATIENCE,
        )

    async def reopen(self, uid: str) -> bool:
        """Give the clients of a Session that was claimed in vain a fresh start."""
        return await self._try(lambda: self._store.reopen(uid))

    async def tell_ending(self, uid: str, reason: Reason) -> bool:
        """Have the gateways tell the clients; False where Redis did not answer."""
        if reason is Reason.REVOKED:
            await self._try(lambda: self._store.revoke(uid))
        return await self._try(lambda: self._store.mark(uid, RecordState.RELEASING, why=reason))

    async def forget(self, uid: str) -> bool:
        """Drop the record of a Session that has ended; False where Redis did not answer."""
        return await self._try(lambda: self._store.forget(uid))

    def restore(self) -> None:
        """Have `run` open what Redis may have lost, and not wait for the next resync."""
        self._wanted.set()

    async def run(self) -> None:
        """Restore whenever that is wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._rebuild()

    async def repair(self, *, listed: AbstractSet[str]) -> None:
        """Open what a bound Session lacks, drop what no Session stands behind.

        `listed` are the uids of a full list: what neither it nor the cache knows has no
        Session. The database of the records belongs to this one cluster alone.
        """
        recorded = await self._rebuild()
        for uid in recorded or ():
            if self._has_ended(uid, listed):
                REPAIRS.labels("record_orphaned").inc()
                await self.forget(uid)

    async def _rebuild(self) -> AbstractSet[str] | None:
        """Open what is missing, say so if that is all, and give what was there before."""
        try:
            loss = await self._store.loss()
            recorded = await self._store.uids()
            if await self._open_missing(recorded) and loss is not None:
                await self._store.note_rebuilt(loss)
        except StoreUnavailable as error:
            REDIS_UP.set(0)
            log.warning("records not compared", error=str(error))
            return None
        REDIS_UP.set(1)
        return recorded

    async def _open_missing(self, recorded: AbstractSet[str]) -> bool:
        """Open records; False if Redis took one of them not."""
        all_open = True
        for uid in [session.metadata.uid for session in self._sessions]:
            session = self._sessions.get(uid)  # it may have ended while others were opened
            if session is None or uid in recorded:
                continue
            if session.status.phase is Phase.ACTIVE or is_cancellable(session.status):
                REPAIRS.labels("record_missing").inc()
                all_open &= await self.open(session, session.status)
        return all_open

    def _has_ended(self, uid: str, listed: AbstractSet[str]) -> bool:
        known = self._sessions.get(uid)
        return uid not in listed if known is None else known.status.phase is Phase.DESTROYED

    async def _claimed(self, uid: str, action: Claim, proof: Proof) -> Outcome:
        answer = await self._store.claim(
            uid,
            to=action.stage,
            why=action.reason,
            grace=action.grace,
            counter=action.counter,
            watch=proof,
        )
        return OUTCOMES.get(answer, Outcome.UNKNOWN)

    async def _try(self, write: Callable[[], Awaitable[object]]) -> bool:
        async def done() -> bool:
            await write()
            return True

        return await self._ask(done, otherwise=False)

    async def _ask(
        self, call: Callable[[], Awaitable[T]], *, otherwise: T, patience: timedelta = PATIENCE
    ) -> T:
        now = asyncio.get_running_loop().time()
        if now < self._down_until:
            return otherwise  # one slow failure is enough for everyone who comes right after
        try:
            async with asyncio.timeout(patience.total_seconds()):
                answer = await call()
        except (StoreUnavailable, TimeoutError) as error:
            REDIS_UP.set(0)
            self._down_until = now + REST.total_seconds()
            log.warning("record not written; the resync repairs it", error=repr(error))
            return otherwise
        REDIS_UP.set(1)
        return answer


def _opening(session: Session, status: SessionStatus, *, now: datetime) -> dict[str, Any]:
    spec = session.spec
    ends = lifetime_end(status, spec)
    whole = timedelta(seconds=spec.max_lifetime_seconds)
    return {
        "uid": session.metadata.uid,
        "namespace": session.metadata.namespace,
        "name": session.metadata.name,
        "user": spec.user,
        "node": status.node_name or "",
        "rebuilt": now - _active_since(status, now=now) > FIRST_RECORD,
        "lifetime": whole if ends is None else max(timedelta(), ends - now),
        "liveness": LivenessSpec(
            heartbeat_period=heartbeat_period(spec),
            heartbeat_threshold=heartbeat_threshold(spec),
            initial_delay=initial_delay(spec),
            idle_timeout=idle_timeout(spec),
            signals=spec.idle.signals if spec.idle else (),
            disconnect_grace=timedelta(milliseconds=spec.disconnect_grace_milliseconds),
        ),
    }


def _active_since(status: SessionStatus, *, now: datetime) -> datetime:
    return datetime.fromisoformat(status.active_since) if status.active_since else now
