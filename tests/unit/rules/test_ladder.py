"""The verdict follows from the evidence, and nothing completes without it."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusession.api.release import COMPLETING, Mode, Verdict
from gpusession.api.session import Reason
from gpusession.rules.ladder import (
    IDLE_TOLERANCE,
    Evidence,
    Limits,
    StageName,
    is_clean,
    judge,
    rungs,
    spacing,
    verify_limit,
)

LIMITS = Limits()

CLEAN = Evidence(
    ever_held=True,
    holding=0,
    alive=0,
    unattributed=0,
    unlisted_bytes=0,
    blind=None,
    clean_reads=2,
    clean_for=timedelta(milliseconds=100),
)

evidences = st.builds(
    Evidence,
    ever_held=st.booleans(),
    holding=st.integers(0, 2),
    alive=st.integers(0, 2),
    unattributed=st.integers(0, 2),
    unlisted_bytes=st.sampled_from([0, IDLE_TOLERANCE, IDLE_TOLERANCE + 1]),
    may_restart=st.booleans(),
    blind=st.none() | st.just("NVML: lost"),
    clean_reads=st.integers(0, 3),
    clean_for=st.timedeltas(timedelta(0), timedelta(milliseconds=200)),
    rebooted=st.booleans(),
)


@pytest.mark.parametrize(
    ("seen", "verdict", "reason"),
    [
        ({}, Verdict.FREED, Reason.FREED),
        ({"ever_held": False}, Verdict.NOTHING_HELD, Reason.NOTHING_HELD),
        ({"holding": 1}, Verdict.HELD, Reason.STILL_HELD),
        ({"alive": 1}, Verdict.HELD, Reason.STILL_HELD),
        ({"unattributed": 1}, Verdict.HELD, Reason.STILL_HELD),
        ({"unlisted_bytes": IDLE_TOLERANCE}, Verdict.FREED, Reason.FREED),
        ({"unlisted_bytes": IDLE_TOLERANCE + 1}, Verdict.HELD, Reason.STILL_HELD),
        ({"clean_reads": 1}, Verdict.HELD, Reason.STILL_HELD),
        ({"clean_for": timedelta(milliseconds=99)}, Verdict.HELD, Reason.STILL_HELD),
        (
            {"clean_for": timedelta(milliseconds=10), "may_restart": False},
            Verdict.FREED,
            Reason.FREED,
        ),
        (
            {"clean_for": timedelta(milliseconds=9), "may_restart": False},
            Verdict.HELD,
            Reason.STILL_HELD,
        ),
        ({"blind": "NVML: lost"}, Verdict.UNKNOWN, Reason.NOT_OBSERVABLE),
        ({"blind": "x", "holding": 1}, Verdict.UNKNOWN, Reason.NOT_OBSERVABLE),
        ({"blind": "x", "ever_held": False}, Verdict.UNKNOWN, Reason.NOT_OBSERVABLE),
        ({"rebooted": True}, Verdict.NODE_GONE, Reason.NODE_GONE),
        ({"rebooted": True, "blind": "x"}, Verdict.NODE_GONE, Reason.NODE_GONE),
        ({"rebooted": True, "alive": 1}, Verdict.HELD, Reason.STILL_HELD),
    ],
    ids=str,
)
def test_verdict(seen: dict[str, object], verdict: Verdict, reason: Reason) -> None:
    """Each piece of evidence has its verdict."""
    judgement = judge(replace(CLEAN, **seen), LIMITS)  # type: ignore[arg-type]

    assert (judgement.verdict, judgement.reason) == (verdict, reason)
    assert judgement.message


@pytest.mark.parametrize(
    ("seen", "clean"),
    [
        ({}, True),
        ({"holding": 1}, False),
        ({"alive": 1}, False),
        ({"unattributed": 1}, False),
        ({"unlisted_bytes": IDLE_TOLERANCE}, True),
        ({"unlisted_bytes": IDLE_TOLERANCE + 1}, False),
    ],
    ids=str,
)
def test_clean_look(seen: dict[str, int], clean: object) -> None:
    """A look is clean when nothing of the Session is left, listed or not."""
    nothing = {"holding": 0, "alive": 0, "unattributed": 0, "unlisted_bytes": 0}

    assert is_clean(**(nothing | seen)) is clean


@given(evidences)
def test_freed_and_nothing_held_need_eyes_and_two_clean_reads(evidence: Evidence) -> None:
    """Never Freed or NothingHeld when blind, when anything is left, or at the first glance."""
    verdict = judge(evidence, LIMITS).verdict

    if verdict in {Verdict.FREED, Verdict.NOTHING_HELD}:
        assert evidence.blind is None
        assert evidence.holding == evidence.alive == evidence.unattributed == 0
        assert evidence.clean_reads >= 2
        assert evidence.unlisted_bytes <= IDLE_TOLERANCE
        assert evidence.clean_for >= spacing(LIMITS, may_restart=evidence.may_restart)
        assert (verdict is Verdict.FREED) == evidence.ever_held


@given(evidences)
def test_nothing_completes_while_the_pod_lives_or_holds(evidence: Evidence) -> None:
    """No verdict lets a finalizer go beside a process that may hold the GPU."""
    if evidence.alive or evidence.holding:
        assert judge(evidence, LIMITS).verdict not in COMPLETING


def test_the_fast_path_is_800_milliseconds_with_the_hook() -> None:
    """The limits of all stages sum up to the promise."""
    total = sum((rung.limit for rung in rungs(Mode.END, timedelta(0), LIMITS)), LIMITS.hook)

    assert total == timedelta(milliseconds=800)


def test_a_grace_gives_sigterm_its_time() -> None:
    """TerminationGracePeriodSeconds replaces the 200 ms of SIGTERM and nothing else."""
    climbed = {rung.stage: rung.limit for rung in rungs(Mode.END, timedelta(seconds=30), LIMITS)}

    assert climbed[StageName.SIGTERM] == timedelta(seconds=30)
    assert climbed[StageName.SIGKILL] == LIMITS.sigkill


@pytest.mark.parametrize(
    ("elapsed", "limit"), [(0, 600), (20, 580), (400, 200), (5000, 200)], ids=str
)
def test_verify_gets_what_the_stages_before_it_left(elapsed: int, limit: int) -> None:
    """Never less than its own limit, never more than the ladder's sum."""
    climbed = rungs(Mode.END, timedelta(0), LIMITS)

    assert verify_limit(climbed, timedelta(milliseconds=elapsed)) == timedelta(milliseconds=limit)


def test_verify_mode_has_no_stage_that_signals() -> None:
    """Verify resolves and looks."""
    climbed = rungs(Mode.VERIFY, timedelta(seconds=30), LIMITS)

    assert [rung.stage for rung in climbed] == [StageName.RESOLVE, StageName.VERIFY]
