"""What a gateway remembers of tokens, and what it forgets."""

from datetime import timedelta

import pytest

from gpusession.gateway.verified import VerifiedTokens
from gpusession.tokens import Presented

ONE, TWO, OTHER = Presented("u1", "d1"), Presented("u1", "d2"), Presented("u2", "d3")


class Desk:
    """A memory for three, and a clock that only we move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tokens = VerifiedTokens(most=3, life=timedelta(minutes=30), monotonic=lambda: self.now)


@pytest.fixture
def desk() -> Desk:
    """Give a memory that is empty."""
    return Desk()


def test_a_token_that_was_good_is_remembered_with_its_age(desk: Desk) -> None:
    """Healing needs both: since when, and for how long yet."""
    desk.tokens.note(ONE)
    desk.now += 60

    memory = desk.tokens.recall(ONE)

    assert memory is not None
    assert (memory.ago, memory.lasts) == (timedelta(minutes=1), timedelta(minutes=29))


def test_a_token_that_was_never_good_here_is_not_known(desk: Desk) -> None:
    """Another digest of the same Session proves nothing."""
    desk.tokens.note(ONE)

    assert desk.tokens.recall(TWO) is None


def test_a_token_is_forgotten_when_it_would_have_expired(desk: Desk) -> None:
    """The memory must not outlive what it remembers."""
    desk.tokens.note(ONE)
    desk.now += 30 * 60

    assert desk.tokens.recall(ONE) is None


def test_use_moves_the_expiry_on(desk: Desk) -> None:
    """As Redis does it."""
    desk.tokens.note(ONE)
    desk.now += 29 * 60
    desk.tokens.note(ONE)
    desk.now += 29 * 60

    assert desk.tokens.recall(ONE) is not None


def test_a_rotated_token_dies_in_its_minute_whatever_it_is_used_for(desk: Desk) -> None:
    """Beats with it are still good, and move nothing on."""
    desk.tokens.note(ONE)
    desk.tokens.rotate(ONE)
    desk.tokens.note(ONE)
    desk.now += 61

    assert desk.tokens.recall(ONE) is None


def test_a_token_that_was_rotated_elsewhere_before_it_came_dies_in_its_minute(
    desk: Desk,
) -> None:
    """Another gateway tells of it, and then somebody shows it here."""
    desk.tokens.rotate(ONE)
    desk.tokens.note(ONE)
    assert desk.tokens.recall(ONE) is not None
    desk.now += 61

    assert desk.tokens.recall(ONE) is None


def test_a_revoked_session_leaves_no_token_behind(desk: Desk) -> None:
    """All of its digests go, and nobody else's."""
    for who in (ONE, TWO, OTHER):
        desk.tokens.note(who)
    desk.tokens.forget("u1")

    assert [desk.tokens.recall(who) is not None for who in (ONE, TWO, OTHER)] == [
        False,
        False,
        True,
    ]


def test_the_memory_is_bounded_and_keeps_what_was_used_last(desk: Desk) -> None:
    """Strangers with many good tokens must not push out who beats."""
    for who in (ONE, TWO, OTHER):
        desk.tokens.note(who)
    desk.tokens.note(ONE)
    desk.tokens.note(Presented("u3", "d4"))

    assert desk.tokens.recall(ONE) is not None
    assert desk.tokens.recall(TWO) is None
