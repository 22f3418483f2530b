"""The ladder of one GPU release, and the verdict as a function of what was seen.

Pure: the agent climbs (`agent/release.py`), this module says how far and how long, and what
the evidence amounts to. A verdict completes only when somebody could look.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from gpusession.api.release import Mode, Verdict
from gpusession.api.session import Reason

IDLE_TOLERANCE = 64 * 2**20
"""Bytes by which an idle GPU's use may wander (driver, ECC, persistence) without a holder."""

CLEAN_READS = 2
"""One clean read may fall between a process that left and the one that takes its place."""


class StageName(StrEnum):
    """The rungs of a release, in the order in which they are climbed."""

    RESOLVE = "resolve"
    SIGTERM = "sigterm"
    SIGKILL = "sigkill"
    VERIFY = "verify"


class StageResult(StrEnum):
    """What came of a rung."""

    DONE = "done"
    LATE = "late"
    """Its time ran out: processes still lived, or memory was still held."""
    BLIND = "blind"
    """Nobody could look at the GPUs or at the processes."""
    NOTHING_TO_DO = "nothing to do"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Longest time for each rung; with the hook's 200 ms they sum up to 800 ms."""

    resolve: timedelta = timedelta(milliseconds=100)
    """Reads a few files, one NVML snapshot and one Pod: a millisecond each when healthy."""

    hook: timedelta = timedelta(milliseconds=200)
    """Kept free for the workload's own hook, which is no rung yet."""

    sigterm: timedelta = timedelta(milliseconds=200)
    """A plain process exits in under 1 ms; the Session may ask for more by its grace."""

    sigkill: timedelta = timedelta(milliseconds=100)
    """Kill to exit takes 0.1 ms; the rest is for forks that race it."""

    verify: timedelta = timedelta(milliseconds=200)
    """Twice `clean_spacing`; it also gets what the stages before it left of their time."""

    clean_spacing: timedelta = timedelta(milliseconds=100)
    """Between two clean reads: long enough for a restarted container to show itself."""

    clean_spacing_ended: timedelta = timedelta(milliseconds=10)
    """The same where no container can start again: then only the driver may lag behind."""

    aftercare: timedelta = timedelta(seconds=5)
    """After the verdict: kubelet restarts what died before it heard of the Pod's deletion, at
    once or, on a busy machine, within seconds."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One stage and the longest that it may take."""

    stage: StageName
    limit: timedelta


def rungs(mode: Mode, grace: timedelta, limits: Limits) -> tuple[Rung, ...]:
    """Tell which rungs are climbed; VERIFY has none that signals.

    A grace above zero replaces the limit of SIGTERM: the Session chose the slow path.
    """
    resolve = Rung(StageName.RESOLVE, limits.resolve)
    verify = Rung(StageName.VERIFY, limits.verify)
    if mode is Mode.VERIFY:
        return (resolve, verify)
    sigterm = grace if grace > timedelta(0) else limits.sigterm
    return (
        resolve,
        Rung(StageName.SIGTERM, sigterm),
        Rung(StageName.SIGKILL, limits.sigkill),
        verify,
    )


def verify_limit(climbed: tuple[Rung, ...], elapsed: timedelta) -> timedelta:
    """Tell how long to verify: at least its own limit, and up to the end of the ladder.

    A process that exits in 5 ms of its 200 leaves the rest to drivers that free slowly: a
    verdict of Held costs another round, and the sum of the limits is promised anyway.
    """
    left = sum((rung.limit for rung in climbed), -elapsed)
    return max(left, climbed[-1].limit)


def spacing(limits: Limits, *, may_restart: bool) -> timedelta:
    """Tell how far apart two clean reads must lie."""
    return limits.clean_spacing if may_restart else limits.clean_spacing_ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a release saw, with the numbers of its last look."""

    ever_held: bool
    """A process of the Pod was seen holding memory, now or at any time while bound."""

    holding: int
    """Entries in NVML's lists that are processes of the Pod."""

    alive: int
    """Processes of the Pod that live, whether they hold or not."""

    unattributed: int
    """Entries on the Session's GPUs that belong to no Pod and were not there before it."""

    unlisted_bytes: int
    """The most in use beyond the idle baseline of a GPU of the Session that lists nobody."""

    blind: str | None
    """Why nobody could look, or None."""

    clean_reads: int
    """Looks in a row, up to the last one, that found nothing."""

    clean_for: timedelta
    """From the first to the last of those."""

    may_restart: bool = True
    """kubelet may still start a container of the Pod; false once it is terminating."""

    rebooted: bool = False
    """The node booted after the bind, and no process of the Pod was seen since."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, its reason, and a sentence for a human."""

    verdict: Verdict
    reason: Reason
    message: str


def is_clean(*, holding: int, alive: int, unattributed: int, unlisted_bytes: int) -> bool:
    """Tell whether a look that could see found nothing left of the Session."""
    return holding == alive == unattributed == 0 and unlisted_bytes <= IDLE_TOLERANCE


def judge(evidence: Evidence, limits: Limits) -> Judgement:
    """Turn evidence into a verdict; what is missing makes it Held or Unknown, never Freed."""
    remains = _remains(evidence)
    if evidence.rebooted and evidence.alive == evidence.holding == 0:
        return Judgement(
            Verdict.NODE_GONE,
            Reason.NODE_GONE,
            "the node has rebooted since the bind; GPU memory does not survive that",
        )
    if evidence.blind is not None:
        return Judgement(Verdict.UNKNOWN, Reason.NOT_OBSERVABLE, evidence.blind)
    if remains:
        return Judgement(Verdict.HELD, Reason.STILL_HELD, "; ".join(remains))
    if not _is_settled(evidence, limits):
        return Judgement(
            Verdict.HELD, Reason.STILL_HELD, "not seen clean twice within the time of the ladder"
        )
    if evidence.ever_held:
        return Judgement(
            Verdict.FREED, Reason.FREED, "held GPU memory before, and NVML shows none of it left"
        )
    return Judgement(
        Verdict.NOTHING_HELD, Reason.NOTHING_HELD, "no process of the Pod was seen on a GPU"
    )


def _remains(evidence: Evidence) -> list[str]:
    counted = (
        (evidence.holding, "process(es) of the Pod hold GPU memory"),
        (evidence.unattributed, "process(es) of no known Pod on the GPUs of the Session"),
        (evidence.alive, "process(es) of the Pod alive"),
    )
    remains = [f"{count} {what}" for count, what in counted if count]
    if evidence.unlisted_bytes > IDLE_TOLERANCE:
        remains.append(f"{evidence.unlisted_bytes} bytes in use that no process is listed for")
    return remains


def _is_settled(evidence: Evidence, limits: Limits) -> bool:
    enough = evidence.clean_reads >= CLEAN_READS
    return enough and evidence.clean_for >= spacing(limits, may_restart=evidence.may_restart)
