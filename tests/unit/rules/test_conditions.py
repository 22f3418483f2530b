"""metav1 conditions keep the conventions of Kubernetes' API."""

from datetime import datetime, timedelta, timezone

import pytest
from tests.support.builders import NOW

from gpusession.api.session import ConditionStatus, ConditionType, Reason, SessionStatus
from gpusession.rules.conditions import find, holds, timestamp, with_condition, without_condition

LATER = NOW + timedelta(hours=1)
TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


def ready(status: SessionStatus, value: ConditionStatus, *, now: datetime = NOW) -> SessionStatus:
    """Set Ready."""
    return with_condition(status, ConditionType.READY, value, reason=Reason.BOUND, now=now)


@pytest.mark.parametrize(
    ("before", "value", "moved"),
    [(TRUE, TRUE, False), (TRUE, FALSE, True), (FALSE, UNKNOWN, True), (UNKNOWN, UNKNOWN, False)],
)
def test_transition_time_moves_only_with_the_status(
    before: ConditionStatus, value: ConditionStatus, *, moved: bool
) -> None:
    """A new reason or message is no transition."""
    status = ready(ready(SessionStatus(), before), value, now=LATER)

    found = find(status, ConditionType.READY)
    assert found is not None
    assert found.last_transition_time == timestamp(LATER if moved else NOW)


def test_condition_speaks_of_the_generation_that_was_looked_at() -> None:
    """ObservedGeneration of a condition is that of the status it is set in."""
    found = find(ready(SessionStatus(observed_generation=7), TRUE), ConditionType.READY)

    assert found is not None
    assert found.observed_generation == 7


def test_conditions_stand_in_one_order_whichever_was_set_first() -> None:
    """Equal conditions are equal statuses, so nothing is written twice."""
    one, other = ConditionType.READY, ConditionType.FINISHED

    first = with_condition(
        with_condition(SessionStatus(), one, TRUE, reason="A", now=NOW),
        *(other, TRUE),
        reason="B",
        now=NOW,
    )
    second = with_condition(
        with_condition(SessionStatus(), other, TRUE, reason="B", now=NOW),
        *(one, TRUE),
        reason="A",
        now=NOW,
    )

    assert first == second


def test_message_is_cut_to_what_the_apiserver_takes() -> None:
    """A long sentence of an agent must not make every later status write fail."""
    status = with_condition(
        SessionStatus(), ConditionType.READY, FALSE, reason="A", message="x" * 5000, now=NOW
    )

    assert len(status.conditions[0].message) == 4096


@pytest.mark.parametrize(("value", "expected"), [(TRUE, True), (FALSE, False), (UNKNOWN, False)])
def test_only_true_holds(value: ConditionStatus, *, expected: bool) -> None:
    """Unknown and absent are no proof."""
    assert holds(ready(SessionStatus(), value), ConditionType.READY) is expected
    assert not holds(SessionStatus(), ConditionType.READY)


def test_removed_condition_leaves_the_others() -> None:
    """What no longer says anything goes alone."""
    status = ready(SessionStatus(), TRUE)
    status = with_condition(status, ConditionType.FINISHED, TRUE, reason="A", now=NOW)

    status = without_condition(status, ConditionType.READY, ConditionType.PENDING_DESTROY)

    assert [c.type for c in status.conditions] == ["Finished"]


def test_timestamp_is_the_form_of_metav1_time() -> None:
    """Whole seconds in UTC with a Z."""
    assert timestamp(NOW + timedelta(microseconds=999_999)) == "2026-01-02T03:04:05Z"


def test_timestamp_of_another_zone_is_the_same_moment() -> None:
    """An aware time of anywhere is written in UTC."""
    tokyo = NOW.astimezone(timezone(timedelta(hours=9)))

    assert timestamp(tokyo) == "2026-01-02T03:04:05Z"
