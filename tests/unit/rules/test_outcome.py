"""What an answer proves, and that no other answer proves it."""

import msgspec
import pytest
from tests.support.builders import NOW, make_clearing, make_release, make_status

from gpusession.api.release import COMPLETING, Verdict
from gpusession.api.session import ConditionType, Phase
from gpusession.rules.conditions import find, holds
from gpusession.rules.observation import Unreachable
from gpusession.rules.outcome import (
    REASON_OF,
    SENTENCE_OF,
    is_proven,
    with_clearing,
    with_release,
    with_verdict,
)

ENDING = make_status(Phase.PENDING_DESTROY)


@pytest.mark.parametrize("verdict", sorted(Verdict))
def test_only_a_completing_verdict_releases_the_gpu(verdict: Verdict) -> None:
    """GPUReleased is True with evidence, and with nothing else."""
    status = with_release(ENDING, make_release(verdict), now=NOW)

    assert holds(status, ConditionType.GPU_RELEASED) is (verdict in COMPLETING)


@pytest.mark.parametrize("verdict", [Verdict.HELD, Verdict.UNKNOWN])
def test_cleared_state_does_not_count_without_a_completing_verdict(verdict: Verdict) -> None:
    """A living workload could write its state again."""
    status = with_release(ENDING, make_release(verdict, state=make_clearing()), now=NOW)

    assert not holds(status, ConditionType.STATE_CLEARED)


@pytest.mark.parametrize("verdict", sorted(COMPLETING))
def test_every_completing_verdict_has_its_reason(verdict: Verdict) -> None:
    """The condition's reason is the verdict's own name."""
    assert REASON_OF[verdict] == verdict


def test_only_the_human_has_no_ready_sentence() -> None:
    """Every proof says in words what was seen; an override names who gave up."""
    assert set(SENTENCE_OF) == COMPLETING - {Verdict.OVERRIDDEN}


def test_release_evidence_is_what_the_agent_measured() -> None:
    """Bytes, attempts and devices of the report stand in the status."""
    report = make_release(memory_bytes_after=0, attempts=3)

    status = with_release(ENDING, report, now=NOW)

    release = status.release
    assert release is not None
    assert (release.memory_bytes_before, release.memory_bytes_after) == (1 << 30, 0)
    assert (release.attempts, status.gpu_uuids) == (3, ("GPU-0",))


@pytest.mark.parametrize("verdict", sorted(COMPLETING))
def test_proof_is_told_in_the_words_of_the_agent_that_has_it(verdict: Verdict) -> None:
    """NodeGone may mean a node that has rebooted and is back; only its agent knows."""
    report = make_release(verdict, message="the node has rebooted since the bind")

    status = with_release(ENDING, report, now=NOW)

    released = find(status, ConditionType.GPU_RELEASED)
    assert released is not None
    assert released.message == "the node has rebooted since the bind"


def test_report_without_devices_does_not_erase_those_that_were_known() -> None:
    """A pod that is gone shows none, which says nothing about before."""
    known = with_release(ENDING, make_release(), now=NOW)

    status = with_release(known, make_release(gpu_uuids=()), now=NOW)

    assert status.gpu_uuids == ("GPU-0",)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("now", [False, True])
def test_a_report_adds_what_it_saw_held(*, before: bool, now: bool) -> None:
    """What was once seen holding stays seen, also where a later look finds nothing."""
    known = msgspec.structs.replace(ENDING, seen_holding=before)

    status = with_release(known, make_release(seen_holding=now), now=NOW)

    assert status.seen_holding is (before or now)


def test_neither_half_alone_is_proof() -> None:
    """Free memory and cleared state are asked for both."""
    freed = with_verdict(ENDING, Verdict.FREED, now=NOW)
    cleared = with_clearing(ENDING, make_clearing(), now=NOW)

    assert (is_proven(freed), is_proven(cleared)) == (False, False)
    assert is_proven(with_clearing(freed, make_clearing(), now=NOW))


def test_silent_agent_proves_nothing() -> None:
    """No answer leaves both halves open."""
    status = with_release(ENDING, Unreachable("no answer"), now=NOW)

    assert not holds(status, ConditionType.GPU_RELEASED)
    assert not holds(status, ConditionType.STATE_CLEARED)
