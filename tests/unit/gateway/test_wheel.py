"""The wheel gives things when their time has come, and not before."""

from hypothesis import given
from hypothesis import strategies as st

from gpusession.gateway.wheel import TimerWheel


@given(
    at=st.lists(st.floats(0, 1000), max_size=30),
    looks=st.lists(st.floats(0, 1100), min_size=1, max_size=20).map(sorted),
)
def test_nothing_comes_early_or_stays_longer_than_a_tick(
    at: list[float], looks: list[float]
) -> None:
    """Whatever the moments of looking are."""
    wheel: TimerWheel[float] = TimerWheel(0.5)
    for moment in at:
        wheel.put(moment, moment)
    left = list(at)

    for now in looks:
        for moment in wheel.advance(now):
            assert moment <= now
            left.remove(moment)
        assert all(moment > now - 0.5 for moment in left)


def test_a_time_that_has_passed_comes_with_the_next_tick() -> None:
    """A late put is never lost behind the wheel's back."""
    wheel: TimerWheel[str] = TimerWheel(1.0)
    wheel.advance(100.0)
    wheel.put("late", 3.0)

    assert wheel.advance(100.5) == []
    assert wheel.advance(101.0) == ["late"]


def test_things_come_in_the_order_of_their_ticks() -> None:
    """After a long pause too."""
    wheel: TimerWheel[str] = TimerWheel(1.0)
    wheel.put("second", 5.0)
    wheel.put("first", 2.0)

    assert wheel.advance(60.0) == ["first", "second"]
