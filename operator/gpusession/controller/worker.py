"""Works on one key at a time, to its end: look, decide, act, until nothing is left to do.

Every failure puts the key back with a growing pause; nothing is ever given up.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime

import structlog

from gpusession.controller.actions import Performer, Round
from gpusession.controller.intake import Intake
from gpusession.controller.observer import Findings, Observer
from gpusession.controller.queue import DestroyQueue, Priority
from gpusession.controller.sessions import SessionCache
from gpusession.errors import Deposed, Refused, Retry, Stale
from gpusession.logs import session_log
from gpusession.metrics import RECONCILE_SECONDS, RECONCILES
from gpusession.rules.actions import Requeue
from gpusession.rules.lifecycle import step
from gpusession.rules.observation import Limits

ROUNDS = 16
"""Decisions per visit: the longest honest way, from first sight to gone, takes nine."""

log = structlog.get_logger()


class Worker:
    """Takes keys from the queue; several run side by side, never two on one key."""

    def __init__(
        self,
        *,
        queue: DestroyQueue,
        sessions: SessionCache,
        observer: Observer,
        performer: Performer,
        clock: Callable[[], datetime],
        limits: Limits,
        intake: Intake,
    ) -> None:
        self._intake = intake
        self._queue = queue
        self._sessions = sessions
        self._observer = observer
        self._performer = performer
        self._clock = clock
        self._limits = limits
        self._rebinds: set[str] = set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            key, priority = await self._queue.get()
            try:
                await self._visit(key, priority)
            finally:
                self._queue.done(key)

    def rebind(self, uid: str) -> None:
        """Have the next visit repeat the bind of an Active Session."""
        self._rebinds.add(uid)
        self._queue.add(uid, Priority.RESYNC)

    async def _visit(self, uid: str, priority: Priority) -> None:
        session = self._sessions.get(uid)
        if session is None:
            self._queue.forget(uid)
            return
        started = asyncio.get_running_loop().time()
        with session_log(uid, session.metadata.namespace, session.metadata.name):
            result = await self._guarded(uid, priority)
        RECONCILES.labels(result).inc()
        RECONCILE_SECONDS.observe(asyncio.get_running_loop().time() - started)

    async def _guarded(self, uid: str, priority: Priority) -> str:
        try:
            try:
                return await self._work(uid, priority)
            except Stale as error:
                log.info("the object has moved on; looking again", error=str(error))
                await self._refresh(uid, priority)
                return "stale"
        except Retry as error:
            pause = self._queue.retry(uid, priority, at_least=error.after)
            log.warning("will try again", error=str(error), pause_seconds=pause.total_seconds())
            return "retry"
        except Refused as error:
            pause = self._queue.retry(uid, priority)
            log.error("a write was refused", error=str(error), pause_seconds=pause.total_seconds())
            return "refused"
        except Deposed:
            raise  # it ends this process, and with it every other worker
        except Exception:
            self._queue.retry(uid, priority)
            log.exception("this is a defect; please report it")
            return "defect"

    async def _work(self, uid: str, priority: Priority) -> str:
        suspected = self._intake.take_suspicion(uid)
        findings = Findings(rebind_due=uid in self._rebinds, life_due=suspected)
        self._rebinds.discard(uid)
        try:
            result = await self._decide(uid, priority, findings)
        except Exception:
            if suspected:
                self._intake.suspect_again(uid)  # it may have claimed what it did not write
            raise
        if suspected and result == "waiting":
            self._intake.suspect_again(uid)  # it waits to be heard, or not
        return result

    async def _decide(self, uid: str, priority: Priority, findings: Findings) -> str:
        for _ in range(ROUNDS):
            session = self._sessions.get(uid)
            if session is None:
                self._queue.forget(uid)
                return "gone"
            seen = await self._observer.look(session, findings)
            after, actions = step(session.status, seen, now=self._clock(), limits=self._limits)
            for action in actions:
                if isinstance(action, Requeue):
                    self._again(uid, priority, action)
                    return "waiting"
                current = self._sessions.get(uid) or session
                await self._performer.perform(action, Round(current, after, findings))
            if not actions:
                self._queue.forget(uid)
                return "settled"
        raise Retry(f"no end after {ROUNDS} decisions")

    def _again(self, uid: str, priority: Priority, action: Requeue) -> None:
        if action.after is None:
            self._queue.retry(uid, priority)
        else:
            self._queue.add_after(uid, priority, action.after)

    async def _refresh(self, uid: str, priority: Priority) -> None:
        session = self._sessions.get(uid)
        if session is None:
            return
        fresh = await self._observer.session(session.metadata)
        if fresh is None:
            self._sessions.drop(uid)
        elif not self._sessions.keep(fresh):
            self._queue.retry(uid, priority)  # nothing new: the refusal needs time
            return
        self._queue.add(uid, priority)
