"""Within its grace an end may be taken back, and of claim and return exactly one wins."""

from datetime import timedelta
from typing import Any

import pytest
from tests.support.builders import (
    NOW,
    after,
    decide,
    kinds,
    make_life,
    make_metadata,
    make_session,
    make_status,
    make_vitals,
)

from gpusession.api.session import (
    ConditionStatus,
    ConditionType,
    Phase,
    Reason,
    RecordState,
    Session,
)
from gpusession.rules.actions import (
    Claim,
    OpenRecord,
    RecordStatus,
    Release,
    Requeue,
    TellClients,
)
from gpusession.rules.conditions import find
from gpusession.rules.observation import ABSENT, UNSEEN, Claimed, Outcome
from gpusession.rules.outcome import pending_destroy
from gpusession.rules.returning import is_cancellable

GRACE = timedelta(seconds=60)


def waiting(**session: Any) -> Session:
    """Give a Session in the grace after a lost heartbeat."""
    status = make_status(Phase.ACTIVE)
    status = pending_destroy(status, Reason.HEARTBEAT_LOST, now=NOW, grace=GRACE)
    return make_session(status=status, destroy_grace_seconds=60, **session)


def pending(*, over: bool = False, left: float = 30.0) -> Any:
    """Give the record of one that waits."""
    until = NOW + timedelta(seconds=left)
    vitals = make_vitals(stage=RecordState.PENDING, pending_until=until, counter=5)
    return make_life(vitals=vitals, grace_over=over)


def test_grace_shows_when_it_ends() -> None:
    """Status field destroyAfter lies ahead, and no release has begun."""
    status = waiting().status

    assert status.destroy_after == "2026-01-02T03:05:05Z"
    assert is_cancellable(status)


def test_grace_is_waited_for() -> None:
    """Nothing is released, and the key comes up again when it is over."""
    _, actions = decide(waiting(), life=pending())

    assert actions == (Requeue(timedelta(seconds=30)),)


@pytest.mark.parametrize("left", [-5.0, 0.0, 0.001])
def test_wait_is_never_a_busy_loop(left: float) -> None:
    """An end that is due, but whose grace did not count, is looked at now and then."""
    _, actions = decide(waiting(), life=pending(left=left))

    assert isinstance(actions[0], Requeue)
    assert actions[0].after is not None
    assert actions[0].after >= timedelta(milliseconds=50)


def test_client_who_came_back_has_a_session_again() -> None:
    """Everything about the end goes, and Ready is True."""
    status, actions = decide(waiting(), life=make_life())

    ready = find(status, ConditionType.READY)
    assert (status.phase, status.reason, actions) == (Phase.ACTIVE, "Bound", (RecordStatus(),))
    assert (status.destroy_after, status.pending_destroy_since) == (None, None)
    assert ready is not None
    assert ready.status is ConditionStatus.TRUE
    assert find(status, ConditionType.GPU_RELEASED) is None


def test_end_of_the_grace_is_claimed_first() -> None:
    """A client may return at this very moment; the counter tells who was first."""
    _, actions = decide(waiting(), life=pending(over=True))

    assert actions == (Claim(RecordState.RELEASING, Reason.HEARTBEAT_LOST, timedelta(), 5, NOW),)


def test_won_claim_is_written_before_anything_is_released() -> None:
    """Redis may forget the claim; the Session does not."""
    won = Claimed(Reason.HEARTBEAT_LOST, Outcome.WON)

    first = decide(waiting(), life=pending(over=True), claimed=won)
    second = decide(after(waiting(), first))

    assert first[1] == (RecordStatus(), TellClients(Reason.HEARTBEAT_LOST))
    assert not is_cancellable(first[0])
    assert Release in kinds(second[1])


def test_claim_of_the_grace_is_no_claim_of_the_end() -> None:
    """The visit that won the one goes on to wait for the other."""
    won = Claimed(Reason.HEARTBEAT_LOST, Outcome.WON, final=False)

    status, actions = decide(waiting(), life=pending(), claimed=won)

    assert is_cancellable(status)
    assert actions == (Requeue(timedelta(seconds=30)),)


@pytest.mark.parametrize("outcome", [Outcome.RETURNED, Outcome.UNKNOWN])
def test_claim_that_was_not_won_releases_nothing(outcome: Outcome) -> None:
    """The next look tells which it was."""
    lost = Claimed(Reason.HEARTBEAT_LOST, outcome)

    status, actions = decide(waiting(), life=pending(over=True), claimed=lost)

    assert is_cancellable(status)
    assert kinds(actions) == (Requeue,)


@pytest.mark.parametrize("stage", [RecordState.RELEASING, RecordState.GONE])
def test_claim_of_an_earlier_life_is_written_down(stage: RecordState) -> None:
    """A controller died between claim and status: clients were refused since."""
    life = make_life(vitals=make_vitals(stage=stage))

    status, actions = decide(waiting(), life=life)

    assert not is_cancellable(status)
    assert kinds(actions) == (RecordStatus, TellClients)


def test_lost_record_begins_the_grace_anew() -> None:
    """Nothing was released, so nothing is lost but time."""
    _, actions = decide(waiting(), life=ABSENT)

    assert kinds(actions) == (OpenRecord, Requeue)


@pytest.mark.parametrize("life", [None, UNSEEN])
def test_silent_redis_decides_nothing(life: Any) -> None:
    """Neither the end nor the return; it is asked again."""
    status, actions = decide(waiting(), life=life)

    assert is_cancellable(status)
    assert actions == (Requeue(),)


def test_a_grace_that_is_over_without_redis_says_what_it_waits_for() -> None:
    """Once: the time to which it was to last is gone, and nobody could tell why it goes on."""
    late = NOW + GRACE
    first = decide(waiting(), life=UNSEEN, now=late)
    again = decide(after(waiting(), first), life=UNSEEN, now=late + GRACE)

    released = find(first[0], ConditionType.GPU_RELEASED)
    assert released is not None
    assert (released.reason, "Redis" in released.message) == (Reason.DESTROY_GRACE, True)
    assert is_cancellable(first[0])
    assert kinds(first[1]) == (RecordStatus, Requeue)
    assert again[1] == (Requeue(),)


@pytest.mark.parametrize(
    ("reason", "session", "seen"),
    [
        pytest.param(Reason.DELETED, {"metadata": make_metadata(deleted=True)}, {}, id="deleted"),
        pytest.param(Reason.EXPLICIT_CLOSE, {"desired_phase": Phase.DESTROYED}, {}, id="closed"),
        pytest.param(Reason.POD_GONE, {}, {"pod": ABSENT}, id="pod gone"),
        pytest.param(
            Reason.HEARTBEAT_LOST,
            {"metadata": make_metadata(override_by="ada")},
            {},
            id="a human gives up",
        ),
        pytest.param(
            Reason.LIFETIME_EXCEEDED, {"max_lifetime_seconds": 60}, {"now": NOW + GRACE}, id="cap"
        ),
    ],
)
def test_what_ends_for_good_does_not_wait_for_the_grace(
    reason: Reason, session: dict[str, Any], seen: dict[str, Any]
) -> None:
    """Nor for Redis."""
    status, actions = decide(waiting(**session), life=UNSEEN, **seen)

    assert (status.phase, status.reason) == (Phase.PENDING_DESTROY, reason)
    assert not is_cancellable(status)
    assert kinds(actions) == (RecordStatus, TellClients)
