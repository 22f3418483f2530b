"""Releases: one at a time for each Session, on evidence, and written down before each step.

intent row -> signals -> two clean reads -> Redis state -> done row. Killed at any point, the
next call goes on from the row. Nothing is signalled while the pid namespace is unproven,
and nothing of a Pod that withdrew its consent, is bound to another Session, or never was
bound and cannot be adopted.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import structlog

from gpusession.agent.aftercare import Aftercare
from gpusession.agent.ascent import Ascent
from gpusession.agent.gpu_view import GpuView
from gpusession.agent.ledger import Ledger
from gpusession.agent.ledger_row import Claim, Known, Row, RowState
from gpusession.agent.pid_namespace import PidNamespace
from gpusession.agent.pod_check import Consent, PodCheck, PodWord
from gpusession.agent.processes import PodProcesses
from gpusession.api.release import (
    COMPLETING,
    Mode,
    ReleaseOrder,
    ReleaseReport,
    StateReport,
    Verdict,
)
from gpusession.api.session import Reason
from gpusession.errors import Retry
from gpusession.metrics import RELEASE_VERDICTS
from gpusession.rules.ladder import (
    Judgement,
    Limits,
    Rung,
    StageName,
    judge,
    rungs,
    spacing,
    verify_limit,
)
from gpusession.store.clearing import StateClearer

log = structlog.get_logger(__name__)

_WAITING = StateReport(cleared=False, reason=Reason.WAITING_FOR_RELEASE)


@dataclass(frozen=True, slots=True)
class _Climb:
    """One attempt: the order, what the ledger knew beforehand, and how far it may go."""

    order: ReleaseOrder
    row: Row | None
    ascent: Ascent
    mode: Mode
    may_restart: bool
    note: str = ""


class Releaser:
    """Answers releases; a call for a Session that is being released joins that release."""

    def __init__(  # noqa: PLR0913 - the neighbours it joins, by name
        self,
        *,
        boot_id: str,
        namespace: PidNamespace,
        pods: PodCheck,
        view: GpuView,
        processes: PodProcesses,
        ledger: Ledger,
        clearer: StateClearer | None,
        state_timeout: timedelta,
        limits: Limits,
    ) -> None:
        self._boot_id = boot_id
        self._namespace = namespace
        self._pods = pods
        self._view = view
        self._processes = processes
        self._ledger = ledger
        self._clearer = clearer
        self._state_timeout = state_timeout
        self._limits = limits
        self._aftercare = Aftercare(processes, release=self.release, length=limits.aftercare)
        self._running: dict[str, asyncio.Task[ReleaseReport]] = {}

    async def release(self, order: ReleaseOrder) -> ReleaseReport:
        """Release and report; it goes on when the caller goes away. Failures are Unknown."""
        uid = order.session_uid
        task = self._running.get(uid)
        if task is None:
            task = asyncio.create_task(self._release_safely(order), name=f"release {uid}")
            self._running[uid] = task
            task.add_done_callback(lambda _: self._running.pop(uid, None))
        report = await asyncio.shield(task)
        RELEASE_VERDICTS.labels(report.verdict).inc()
        return report

    async def resume(self) -> None:
        """Look after the Pods that an earlier agent has released since the node booted.

        Kubelet may have started one again while nobody was there. Of nearly all of them the
        cgroup is gone: nothing can start there any more.
        """
        for row in await self._ledger.rows():
            is_ours = row.looked_after and row.claim.boot_id == self._boot_id
            if is_ours and self._processes.has_cgroup(row.claim.pod_uid):
                self._aftercare.watch(_order_of(row))

    async def drain(self, *, within: timedelta) -> None:
        """Wait for the releases in flight; the ledger knows those that do not make it."""
        await self._aftercare.stop()
        if self._running:
            await asyncio.wait(set(self._running.values()), timeout=within.total_seconds())

    async def _release_safely(self, order: ReleaseOrder) -> ReleaseReport:
        """Turn every failure into Unknown: one order must not spoil the others of its batch."""
        try:
            report = await self._release(order)
        except Retry as error:
            report = _unknown(order, str(error))
        except Exception as error:
            log.exception("release failed", session_uid=order.session_uid)
            report = _unknown(order, f"the agent failed: {error!r}")
        log.info(
            "release answered",
            pod_uid=order.pod_uid,
            mode=order.mode,
            **msgspec.to_builtins(report),
        )
        return report

    async def _release(self, order: ReleaseOrder) -> ReleaseReport:
        row = await self._ledger.find(order.session_uid)
        if row is None and order.mode is Mode.IF_BOUND:
            return await self._never_bound(order)
        if row is not None and row.claim.pod_uid != order.pod_uid:
            sentence = f"the Session is bound to Pod uid {row.claim.pod_uid}"
            return _unknown(order, sentence, reason=Reason.AGENT_REFUSED)
        doubt = await self._namespace.doubt()
        if doubt is not None:
            return _unknown(order, doubt, attempts=row.attempts if row else 0)
        ascent = self._ascent(order, row)
        word, _ = await asyncio.gather(
            self._pods.ask(order, within=self._limits.resolve),
            ascent.resolve(Rung(StageName.RESOLVE, self._limits.resolve)),
        )
        if row is not None and row.state is RowState.DONE and row.report is not None:
            if await self._is_reopened(row, ascent):
                log.warning("the Pod of a released Session lives again", pod_uid=order.pod_uid)
            else:
                return await self._repeat(order, row, row.report)
        elif row is None and await self._is_anothers(order, ascent):
            return await self._never_had(order)
        return await self._climb(await self._start(order, row, ascent, word))

    def _ascent(self, order: ReleaseOrder, row: Row | None) -> Ascent:
        return Ascent(
            order.pod_uid,
            gpu_uuids={*order.gpu_uuids, *(row.gpu_uuids if row else ())},
            baseline=row.baseline if row else (),
            view=self._view,
            processes=self._processes,
        )

    async def _is_reopened(self, row: Row, ascent: Ascent) -> bool:
        """Tell whether the Pod of a done Session came back to life, and is nobody else's."""
        if ascent.is_blind or ascent.is_clean:
            return False
        return await self._ledger.living_of_pod(row.claim.pod_uid) is None

    async def _is_anothers(self, order: ReleaseOrder, ascent: Ascent) -> bool:
        """Tell whether a Session that was never seen holding names a Pod that another has."""
        if order.seen_holding or ascent.is_blind:
            return False
        return await self._ledger.living_of_pod(order.pod_uid) is not None

    async def _never_bound(self, order: ReleaseOrder) -> ReleaseReport:
        """Answer for a Session that no bind ever reached; a late bind finds the row done."""
        message = "this node's ledger knows no bind of the Session"
        return await self._close(order, Verdict.NOT_BOUND, Reason.NOT_BOUND, message=message)

    async def _never_had(self, order: ReleaseOrder) -> ReleaseReport:
        """Answer for a Session whose Pod another one has."""
        message = "the Pod is bound to another Session, and never was to this one"
        return await self._close(order, Verdict.NOTHING_HELD, Reason.NOTHING_HELD, message=message)

    async def _close(
        self, order: ReleaseOrder, verdict: Verdict, reason: Reason, *, message: str
    ) -> ReleaseReport:
        """Close the books on a Session whose Pod is not to be touched."""
        report = ReleaseReport(
            session_uid=order.session_uid,
            verdict=verdict,
            reason=reason,
            message=message,
            state=await self._clear_state(order),
        )
        await self._ledger.settle(self._claim(order), report, done=True)
        return report

    async def _repeat(self, order: ReleaseOrder, row: Row, report: ReleaseReport) -> ReleaseReport:
        """Answer as before; only Redis state that is still to be cleared is tried again."""
        if order.state is None or report.state.reason is Reason.CLEARED:
            return report
        report = msgspec.structs.replace(report, state=await self._clear_state(order))
        await self._ledger.settle(row.claim, report, done=True, looked_after=row.looked_after)
        return report

    async def _start(
        self, order: ReleaseOrder, row: Row | None, ascent: Ascent, word: PodWord
    ) -> _Climb:
        """Decide how far to go, and have the intent on disk before anything is done."""
        mode, note = order.mode, ""
        if word.consent is Consent.WITHDRAWN:
            mode, note = Mode.VERIFY, "the Pod withdrew its consent, nothing was signalled"
        elif row is None and mode is Mode.END:
            if word.consent is Consent.GIVEN and await self._adopt(order):
                note = "adopted: the ledger did not know the Session"
            else:
                mode, note = Mode.VERIFY, "never bound here, nothing was signalled"
        known = Known(ascent.gpu_uuids, order.seen_holding or ascent.saw_holding)
        begun = await self._ledger.begin(order.session_uid, known, bytes_before=ascent.bytes_before)
        if begun is None and row is not None:
            mode, note = Mode.VERIFY, "another Session has the Pod, nothing was signalled"
        return _Climb(order, begun or row, ascent, mode, word.may_restart, note)

    async def _adopt(self, order: ReleaseOrder) -> bool:
        return await self._ledger.bind(self._claim(order), baseline=())

    async def _climb(self, climb: _Climb) -> ReleaseReport:
        await self._is_gone_with_reboot(climb)  # on disk before anything is signalled
        grace = timedelta(seconds=climb.order.termination_grace_period_seconds)
        climbed = rungs(climb.mode, grace, self._limits)
        for rung in climbed:
            match rung.stage:
                case StageName.RESOLVE:
                    continue  # done: its look decided how far to go
                case StageName.SIGTERM:
                    await climb.ascent.sigterm(rung)
                case StageName.SIGKILL:
                    await climb.ascent.sigkill(rung)
                case StageName.VERIFY:
                    limit = verify_limit(climbed, climb.ascent.elapsed)
                    apart = spacing(self._limits, may_restart=climb.may_restart)
                    await climb.ascent.verify(Rung(rung.stage, limit), apart=apart)
        held_before = climb.order.seen_holding or (climb.row and climb.row.seen_holding)
        evidence = climb.ascent.evidence(
            held_before=bool(held_before),
            may_restart=climb.may_restart,
            rebooted=await self._is_gone_with_reboot(climb),
        )
        judgement = judge(evidence, self._limits)
        return await self._settle(climb, judgement, seen_holding=evidence.ever_held)

    async def _is_gone_with_reboot(self, climb: _Climb) -> bool:
        """Tell whether the node booted since the bind and nothing of the Pod was seen since.

        kubelet starts the same Pod again after a reboot: then it is released like any other,
        also by the next try, which may find it ended already.
        """
        row = climb.row
        if row is None or row.claim.boot_id == self._boot_id:
            return False
        if climb.ascent.saw_life:
            await self._ledger.bind(row.claim._replace(boot_id=self._boot_id), baseline=())
            return False
        return True

    async def _settle(
        self, climb: _Climb, judgement: Judgement, *, seen_holding: bool
    ) -> ReleaseReport:
        order, row, ascent = climb.order, climb.row, climb.ascent
        done = judgement.verdict in COMPLETING
        before = row.bytes_before if row else None
        report = ReleaseReport(
            session_uid=order.session_uid,
            verdict=judgement.verdict,
            reason=judgement.reason,
            message="; ".join(filter(None, (judgement.message, *ascent.remarks, climb.note))),
            gpu_uuids=tuple(sorted(ascent.gpu_uuids)),
            seen_holding=seen_holding,
            memory_bytes_before=(ascent.bytes_before if before is None else before) or 0,
            memory_bytes_after=ascent.bytes_after,
            processes_ended=ascent.processes_ended + (row.processes_ended if row else 0),
            attempts=row.attempts if row else 1,
            stages=tuple(ascent.stages),
            state=await self._clear_state(order) if done else _WAITING,
        )
        watched = done and climb.mode is not Mode.VERIFY and not climb.may_restart
        if done or row is not None:
            claim = row.claim if row else self._claim(order)
            await self._ledger.settle(claim, report, done=done, looked_after=watched)
        if watched:
            self._aftercare.watch(order)
        return report

    async def _clear_state(self, order: ReleaseOrder) -> StateReport:
        if order.state is None:
            return StateReport(cleared=True, reason=Reason.NOTHING_TO_CLEAR)
        if self._clearer is None:
            message = "this agent has no state Redis: set GPUSESSION_STATE_REDIS_URL"
            return StateReport(cleared=False, reason=Reason.REDIS_UNAVAILABLE, message=message)
        return await self._clearer.clear(
            namespace=order.session_namespace,
            name=order.session_name,
            state=order.state,
            timeout=self._state_timeout,
        )

    def _claim(self, order: ReleaseOrder) -> Claim:
        return Claim(
            session_uid=order.session_uid,
            namespace=order.session_namespace,
            name=order.session_name,
            pod_name=order.pod_name,
            pod_uid=order.pod_uid,
            boot_id=self._boot_id,
        )


def _order_of(row: Row) -> ReleaseOrder:
    """Repeat the order for a Session that is done: its Redis state is not touched again."""
    return ReleaseOrder(
        session_uid=row.claim.session_uid,
        session_namespace=row.claim.namespace,
        session_name=row.claim.name,
        pod_name=row.claim.pod_name,
        pod_uid=row.claim.pod_uid,
        gpu_uuids=row.gpu_uuids,
        seen_holding=row.seen_holding,
    )


def _unknown(
    order: ReleaseOrder,
    message: str,
    *,
    reason: Reason = Reason.NOT_OBSERVABLE,
    attempts: int = 1,
) -> ReleaseReport:
    return ReleaseReport(
        session_uid=order.session_uid,
        verdict=Verdict.UNKNOWN,
        reason=reason,
        message=message,
        attempts=attempts,
        state=_WAITING,
    )
