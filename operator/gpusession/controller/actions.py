"""Acts: one short function per action of `rules.actions`, each safe to repeat."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog

from gpusession.agent_client import AgentClient
from gpusession.api.release import (
    BindRequest,
    ReleaseOrder,
    StateReport,
)
from gpusession.api.session import FINALIZER, Phase, Reason, RecordState, Session, SessionStatus
from gpusession.controller.leader import Leader
from gpusession.controller.observer import Findings
from gpusession.controller.records import RecordKeeper
from gpusession.controller.sessions import SessionCache
from gpusession.errors import AgentUnavailable, Refused, Retry, Stale, StaleLeader, StoreUnavailable
from gpusession.kube.writer import KubeWriter
from gpusession.metrics import EXPIRY_CLAIMS, EXPIRY_WOULD_END, SESSIONS_ENDED, TRANSITIONS
from gpusession.rules.actions import (
    Announce,
    Bind,
    Claim,
    ClearState,
    DeletePod,
    DeleteSession,
    DropFinalizer,
    Effect,
    ForgetRecord,
    Hold,
    OpenRecord,
    RecordStatus,
    Release,
    Reopen,
    ScaleOwner,
    TellClients,
    TellWouldEnd,
)
from gpusession.rules.conditions import timestamp
from gpusession.rules.observation import Claimed, Outcome, Unreachable, Unscaled
from gpusession.store.clearing import StateClearer

STATE_TIMEOUT = timedelta(seconds=30)
"""For one clearing from here: a SCAN pass takes 1 s per million keys of the server."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Round:
    """One decision being carried out: on what, towards which status, and what is learned."""

    session: Session
    after: SessionStatus
    findings: Findings


class Performer:
    """Performs actions and notes in `Findings` what they brought to light.

    Raises ApiUnavailable, Stale or Refused where a write to the apiserver did not happen,
    and Deposed before anything once another process leads. Agents that do not answer are
    findings, not errors.
    """

    def __init__(
        self,
        *,
        writer: KubeWriter,
        agents: AgentClient,
        records: RecordKeeper,
        clearer: StateClearer | None,
        sessions: SessionCache,
        leader: Leader,
        clock: Callable[[], datetime],
    ) -> None:
        self._leader = leader
        self._writer = writer
        self._agents = agents
        self._records = records
        self._clearer = clearer
        self._sessions = sessions
        self._clock = clock
        self._told: dict[str, Reason] = {}
        self._functions: dict[type, Callable[[Any, Round], Awaitable[None]]] = {
            Hold: self._hold,
            Bind: self._bind,
            RecordStatus: self._record_status,
            OpenRecord: self._open_record,
            ForgetRecord: self._forget_record,
            ScaleOwner: self._scale_owner,
            Claim: self._claim,
            Reopen: self._reopen,
            TellClients: self._tell_clients,
            TellWouldEnd: self._tell_would_end,
            DeletePod: self._delete_pod,
            Release: self._release,
            ClearState: self._clear_state,
            Announce: self._announce,
            DropFinalizer: self._drop_finalizer,
            DeleteSession: self._delete_session,
        }

    async def perform(self, action: Effect, now: Round) -> None:
        """Carry out one action."""
        self._leader.check()
        await self._functions[type(action)](action, now)

    async def _hold(self, action: Hold, now: Round) -> None:
        intent = None if action.intent is None else str(action.intent)
        self._sessions.keep(await self._writer.hold(now.session.metadata, intent=intent))
        now.findings.bind = now.findings.release = None  # they spoke of another intent

    async def _bind(self, action: Bind, now: Round) -> None:
        session, metadata = now.session, now.session.metadata
        request = BindRequest(
            session_uid=metadata.uid,
            session_namespace=metadata.namespace,
            session_name=metadata.name,
            pod_name=session.spec.pod_refs[0].name,
            pod_uid=action.intent.pod_uid,
            leader_epoch=self._leader.epoch,
        )
        now.findings.rebind_due = False
        try:
            now.findings.bind = await self._agents.bind(action.intent.node, request)
        except StaleLeader as error:
            await self._leader.raise_epoch(error.known + 1)
            now.findings.bind = Unreachable(str(error))
        except AgentUnavailable as error:
            now.findings.bind = Unreachable(str(error))

    async def _release(self, action: Release, now: Round) -> None:
        session, metadata, spec = now.session, now.session.metadata, now.session.spec
        order = ReleaseOrder(
            session_uid=metadata.uid,
            session_namespace=metadata.namespace,
            session_name=metadata.name,
            pod_name=spec.pod_refs[0].name,
            pod_uid=action.intent.pod_uid,
            gpu_uuids=session.status.gpu_uuids,
            seen_holding=session.status.seen_holding,
            mode=action.mode,
            termination_grace_period_seconds=spec.termination_grace_period_seconds,
            state=None if action.keeps_state else spec.state,
            leader_epoch=self._leader.epoch,
        )
        try:
            report = await self._agents.release(action.intent.node, order)
        except StaleLeader as error:
            await self._leader.raise_epoch(error.known + 1)
            now.findings.release = Unreachable(str(error))
            return
        except AgentUnavailable as error:
            log.warning("release without an answer", node=action.intent.node, error=str(error))
            now.findings.release = Unreachable(str(error))
            return
        now.findings.release = report
        log.info(
            "release answered",
            node=action.intent.node,
            verdict=report.verdict,
            reason=report.reason,
            memory_bytes_before=report.memory_bytes_before,
            memory_bytes_after=report.memory_bytes_after,
            state_cleared=report.state.cleared,
        )

    async def _record_status(self, _: RecordStatus, now: Round) -> None:
        session, before = now.session, now.session.status.phase
        if session.status.leader_epoch > self._leader.epoch:
            # Either we are deposed, and this says so, or the Lease was made anew.
            await self._leader.raise_epoch(session.status.leader_epoch + 1)
        after = msgspec.structs.replace(now.after, leader_epoch=self._leader.epoch)
        self._sessions.keep(await self._writer.record_status(session.metadata, after))
        now.findings.claimed = None  # the status has it; whoever has returned since has undone it
        if before is not after.phase:
            TRANSITIONS.labels(before or "", after.phase or "", after.reason).inc()
            log.info("phase", before=before, phase=after.phase, reason=after.reason)
        if after.phase is Phase.DESTROYED and after.release is not None:
            SESSIONS_ENDED.labels(after.release.verdict).inc()

    async def _open_record(self, _: OpenRecord, now: Round) -> None:
        now.findings.life_due = False  # what is opened now has nothing to tell yet
        await self._records.open(now.session, now.after)

    async def _claim(self, action: Claim, now: Round) -> None:
        outcome = await self._records.claim(now.session.metadata.uid, action)
        EXPIRY_CLAIMS.labels(outcome.value).inc()
        if outcome is Outcome.UNKNOWN:
            # It may have been made: then the record waits for us, and is not due before its grace.
            raise StoreUnavailable("Redis did not say whether the end was claimed")
        now.findings.claimed = Claimed(
            action.reason, outcome, final=action.stage is RecordState.RELEASING
        )

    async def _reopen(self, _: Reopen, now: Round) -> None:
        now.findings.life_due = False
        await self._records.reopen(now.session.metadata.uid)

    async def _tell_clients(self, action: TellClients, now: Round) -> None:
        await self._records.tell_ending(now.session.metadata.uid, action.reason)

    async def _tell_would_end(self, action: TellWouldEnd, now: Round) -> None:
        metadata = now.session.metadata
        now.findings.told_would_end = True
        if self._told.get(metadata.uid) is action.reason:
            return
        if len(self._told) > len(self._sessions):
            self._told = {uid: r for uid, r in self._told.items() if uid in self._sessions}
        self._told[metadata.uid] = action.reason
        EXPIRY_WOULD_END.labels(action.reason).inc()
        message = f"observe mode: this Session would have ended ({action.reason})"
        await self._writer.announce(
            metadata,
            reason=Reason.WOULD_END,
            message=message,
            at=timestamp(self._clock()),
            about=action.reason,
        )
        log.info("would have ended", reason=action.reason)

    async def _forget_record(self, _: ForgetRecord, now: Round) -> None:
        await self._records.forget(now.session.metadata.uid)

    async def _drop_finalizer(self, _: DropFinalizer, now: Round) -> None:
        metadata = now.session.metadata
        fresh = await self._writer.drop_finalizer(metadata)
        if metadata.deletion_timestamp is not None and metadata.finalizers == (FINALIZER,):
            self._sessions.bury(metadata.uid)  # ours was the last: the object is gone
        else:
            self._sessions.keep(fresh)

    async def _delete_session(self, _: DeleteSession, now: Round) -> None:
        await self._writer.delete_session(now.session.metadata)

    async def _scale_owner(self, action: ScaleOwner, now: Round) -> None:
        owner, namespace = action.owner, now.session.metadata.namespace
        about = {"owner": owner.reference.name, "kind": owner.reference.kind}
        try:
            await self._writer.scale(
                namespace, owner.reference, version=owner.resource_version, replicas=owner.spared
            )
        except Refused as error:
            log.warning("scaling refused", **about, error=str(error))
            now.findings.unscaled = Unscaled(Reason.OWNER_SCALE_REFUSED, str(error))
        except (Stale, Retry) as error:
            if not action.last_try:
                raise
            log.warning("going on without scaling", **about, error=str(error))
        else:
            log.info("owner scaled down", **about, replicas=owner.spared)
            now.findings.scaled = True

    async def _delete_pod(self, action: DeletePod, now: Round) -> None:
        try:
            await self._writer.delete_pod(
                now.session.metadata.namespace, action.name, uid=action.uid, grace=action.grace
            )
        except Refused as error:
            # The Pod's consent may have gone between our look and this write. The release
            # still verifies, and says what holds the memory.
            log.warning("pod deletion refused", pod=action.name, error=str(error))

    async def _clear_state(self, _: ClearState, now: Round) -> None:
        now.findings.cleared = await self._cleared(now.session)

    async def _cleared(self, session: Session) -> StateReport:
        state = session.spec.state
        if self._clearer is None and state is not None:
            return StateReport(
                cleared=False,
                reason=Reason.REDIS_UNAVAILABLE,
                message="the controller has no --state-redis-url to clear spec.state with",
            )
        if self._clearer is None or state is None:
            return StateReport(cleared=True, reason=Reason.NOTHING_TO_CLEAR)
        return await self._clearer.clear(
            namespace=session.metadata.namespace,
            name=session.metadata.name,
            state=state,
            timeout=STATE_TIMEOUT,
        )

    async def _announce(self, _: Announce, now: Round) -> None:
        session = now.session
        release = session.status.release
        verdict = release.verdict if release else "none"
        freed = release.memory_bytes_before - release.memory_bytes_after if release else 0
        told = await self._writer.announce(
            session.metadata,
            reason=session.status.reason,
            message=f"Session ended ({session.status.reason}): {verdict}, "
            f"{freed} bytes of GPU memory freed",
            at=timestamp(self._clock()),
        )
        log.info("session destroyed", verdict=verdict, bytes_freed=freed, event_published=told)
