"""The limit of connections follows what the gateway feels."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusession.rules.admission import Bucket, Limits, next_limit, seconds_to_wait

LIMITS = Limits(
    least=200,
    most=20_000,
    lag=timedelta(milliseconds=100),
    latency=timedelta(milliseconds=250),
)
CALM = timedelta(milliseconds=1)


def after(limit: int, in_use: int, *, lag: timedelta = CALM, latency: timedelta = CALM) -> int:
    """Give the limit after one window."""
    return next_limit(limit, in_use=in_use, lag=lag, latency=latency, limits=LIMITS)


def test_a_limit_in_use_grows_while_all_is_well() -> None:
    """Additive enough to feel the next window before the one after."""
    assert after(1000, 900) == 1050


def test_a_limit_that_nobody_tries_stays() -> None:
    """A quiet night proves nothing about ten thousand clients."""
    assert after(1000, 499) == 1000


@pytest.mark.parametrize("slow", ["lag", "latency"])
def test_a_slow_loop_or_redis_cuts_it(slow: str) -> None:
    """Either alone is enough."""
    assert after(1000, 1000, **{slow: timedelta(seconds=1)}) == 900


def test_a_cut_begins_at_the_use() -> None:
    """A limit of 20,000 with 1,000 connections would let in 17,000 more into the trouble."""
    assert after(20_000, 1000, lag=timedelta(seconds=1)) == 900


@given(
    limit=st.integers(0, 10**6),
    in_use=st.integers(0, 10**6),
    lag=st.timedeltas(timedelta(0), timedelta(seconds=5)),
)
def test_the_limit_stays_between_its_ends(limit: int, in_use: int, lag: timedelta) -> None:
    """A gateway in trouble lets some in yet, and a calm one not the whole world."""
    assert LIMITS.least <= after(limit, in_use, lag=lag) <= LIMITS.most


def test_it_recovers_from_the_least_within_two_minutes_of_windows() -> None:
    """Windows of a second: trouble that is over is forgotten before a heartbeat threshold."""
    limit = LIMITS.least
    for _ in range(100):
        limit = after(limit, limit)

    assert limit == LIMITS.most


def test_a_bucket_is_told_by_its_step_and_depth() -> None:
    """Fifty a second and a hundred at once: one in 20 ms, two seconds ahead."""
    bucket = Bucket(per_second=50, burst=100)

    assert bucket.step == timedelta(milliseconds=20)
    assert bucket.depth == timedelta(seconds=2)


@pytest.mark.parametrize(
    ("wait", "seconds"), [(0, 1), (0.2, 1), (1.0, 1), (1.2, 2)], ids=["now", "soon", "one", "two"]
)
def test_who_must_wait_is_told_whole_seconds(wait: float, seconds: int) -> None:
    """Too early would be one more refusal."""
    assert seconds_to_wait(timedelta(seconds=wait)) == seconds
