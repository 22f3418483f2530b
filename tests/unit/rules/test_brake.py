"""The more fall silent at once, the fewer may end."""

import pytest

from gpusession.rules.brake import (
    Brake,
    BrakeLimits,
    Bucket,
    Level,
    filled,
    has_held_too_long,
    moved,
    rate,
    taken,
    wanted,
)

LIMITS = BrakeLimits()
WINDOWS = 180.0


@pytest.mark.parametrize(
    ("silent", "total", "level"),
    [
        pytest.param(1, 1, Level.NORMAL, id="one alone"),
        pytest.param(4, 4, Level.NORMAL, id="too few to tell"),
        pytest.param(5, 5, Level.FULL, id="five of five"),
        pytest.param(20, 1000, Level.NORMAL, id="2 percent"),
        pytest.param(299, 1000, Level.NORMAL, id="just below partial"),
        pytest.param(300, 1000, Level.PARTIAL, id="30 percent"),
        pytest.param(549, 1000, Level.PARTIAL, id="just below full"),
        pytest.param(550, 1000, Level.FULL, id="55 percent"),
        pytest.param(1000, 1000, Level.FULL, id="all"),
        pytest.param(9, 0, Level.NORMAL, id="an empty scope"),
    ],
)
def test_share_of_the_silent_sets_the_level(silent: int, total: int, level: Level) -> None:
    """Shares count from five on."""
    assert wanted(silent, total, LIMITS) is level


def test_brake_closes_at_once() -> None:
    """Waiting to be sure would end Sessions meanwhile."""
    assert moved(Brake(), Level.FULL, now=5.0, limits=LIMITS) == Brake(Level.FULL, since=5.0)


def test_brake_opens_after_two_calm_windows() -> None:
    """One calm moment within an outage proves nothing."""
    brake = Brake(Level.FULL, since=0.0)

    calm = moved(brake, Level.NORMAL, now=10.0, limits=LIMITS)
    almost = moved(calm, Level.NORMAL, now=10.0 + WINDOWS - 1, limits=LIMITS)
    at_last = moved(almost, Level.NORMAL, now=10.0 + WINDOWS, limits=LIMITS)

    assert calm.level is almost.level is Level.FULL
    assert at_last == Brake(Level.NORMAL, since=10.0 + WINDOWS)


def test_relapse_begins_the_calm_anew() -> None:
    """The two windows must be unbroken."""
    brake = moved(Brake(Level.FULL), Level.NORMAL, now=10.0, limits=LIMITS)

    relapsed = moved(brake, Level.FULL, now=100.0, limits=LIMITS)
    later = moved(relapsed, Level.NORMAL, now=10.0 + WINDOWS, limits=LIMITS)

    assert later.level is Level.FULL


def test_hold_is_bounded() -> None:
    """Memory is not kept for ever on a suspicion; a lower level never holds."""
    assert not has_held_too_long(Brake(Level.FULL, since=0.0), now=1799.0, limits=LIMITS)
    assert has_held_too_long(Brake(Level.FULL, since=0.0), now=1800.0, limits=LIMITS)
    assert not has_held_too_long(Brake(Level.PARTIAL, since=0.0), now=9999.0, limits=LIMITS)


@pytest.mark.parametrize(
    ("level", "total", "per_second"),
    [
        (Level.NORMAL, 1, 1.0),
        (Level.NORMAL, 1000, 20.0),
        (Level.PARTIAL, 1000, 2.0),
        (Level.PARTIAL, 1, 0.1),
        (Level.FULL, 100_000, 0.0),
    ],
)
def test_rate_is_a_share_of_all(level: Level, total: int, per_second: float) -> None:
    """2 % per second, one at least; a tenth of that; none."""
    assert rate(level, total, LIMITS) == pytest.approx(per_second)


def test_first_end_waits_for_nothing() -> None:
    """A new bucket holds one token, and no second one."""
    bucket = filled(Bucket(), 1.0, now=7.0)

    once = taken(bucket)

    assert once is not None
    assert taken(once) is None


def test_bucket_fills_with_time_up_to_a_second_of_its_rate() -> None:
    """A quiet night saves nothing up for a bad morning."""
    empty = Bucket(0.0, filled_at=0.0)

    assert filled(empty, 20.0, now=0.5).tokens == pytest.approx(10.0)
    assert filled(empty, 20.0, now=3600.0).tokens == pytest.approx(20.0)
    assert filled(empty, 0.1, now=3600.0).tokens == pytest.approx(1.0)


def test_full_brake_empties_the_bucket() -> None:
    """A token from before must not let one go now."""
    assert taken(filled(Bucket(1.0, filled_at=0.0), 0.0, now=1.0)) is None
    assert taken(filled(Bucket(), 0.0, now=1.0)) is None
