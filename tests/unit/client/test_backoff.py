"""Pauses between connections, and the jitter of beats."""

from datetime import timedelta

import pytest

from gpusession.client.backoff import Backoff, Timing
from gpusession.client.ending import ABNORMAL, Ending

GONE, SHORT, LONG = Ending(ABNORMAL), timedelta(), timedelta(minutes=1)


def _pauses(count: int, ending: Ending = GONE, *, chance: float = 1.0) -> list[float]:
    backoff = Backoff(Timing())
    return [backoff.pause(ending, lived=SHORT, chance=chance).total_seconds() for _ in range(count)]


def test_ceiling_doubles_up_to_the_longest_pause() -> None:
    """From 0.2 s to 15 s in seven steps."""
    assert _pauses(9) == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15.0, 15.0]


@pytest.mark.parametrize(
    ("period", "longest"), [(1, 0.5), (10, 5.0), (30, 15.0), (300, 15.0), (0, 15.0)]
)
def test_no_pause_is_longer_than_half_a_period(period: int, longest: float) -> None:
    """Whatever beats are due, some attempts fit into the silence that ends a Session."""
    backoff, beats = Backoff(Timing()), timedelta(seconds=period)
    pauses = [backoff.pause(GONE, lived=SHORT, chance=1.0, period=beats) for _ in range(9)]

    assert max(pauses).total_seconds() == longest


@pytest.mark.parametrize(("ping", "silence"), [(30, 90), (5, 15), (1, 10)])
def test_a_gateway_may_be_silent_for_three_pings_and_for_10_s_at_least(
    ping: int, silence: int
) -> None:
    """As long as a beat may wait for its ack."""
    assert Timing().silence(timedelta(seconds=ping)) == timedelta(seconds=silence)


@pytest.mark.parametrize(("period", "ack"), [(0, 10), (30, 10), (10, 10), (5, 5), (3, 3), (1, 3)])
def test_an_ack_is_waited_for_no_longer_than_a_heartbeat_period(period: int, ack: int) -> None:
    """A beat that is lost on a dead path can be made good before the threshold is over."""
    assert Timing().ack_within(timedelta(seconds=period)) == timedelta(seconds=ack)


def test_an_ack_is_waited_for_no_longer_than_asked() -> None:
    """Whoever sets less gets less, whatever the period is."""
    timing = Timing(ack_timeout=timedelta(seconds=1))

    assert timing.ack_within(timedelta(seconds=30)) == timedelta(seconds=1)


def test_chance_reaches_from_nothing_to_the_ceiling() -> None:
    """Full jitter: clients that were cut off together do not come back together."""
    assert _pauses(3, chance=0.0) == [0.0, 0.0, 0.0]
    assert _pauses(3, chance=0.5) == [0.1, 0.2, 0.4]


def test_attempts_without_end_do_not_overflow() -> None:
    """A gateway may be away for days."""
    assert _pauses(10_000)[-1] == 15.0


@pytest.mark.parametrize("code", [1012, 1013])
def test_restart_spreads_the_first_return_over_a_second(code: int) -> None:
    """Then it is a gateway that does not come up, like any other."""
    assert _pauses(3, Ending(code)) == [1.0, 0.4, 0.8]


def test_connection_that_lived_starts_the_count_anew() -> None:
    """One that was only welcomed does not: a gateway may flap."""
    backoff = Backoff(Timing())
    for _ in range(5):
        backoff.pause(GONE, lived=SHORT, chance=1.0)

    assert backoff.pause(GONE, lived=LONG, chance=1.0) == timedelta(milliseconds=200)


@pytest.mark.parametrize(
    ("asked", "least"), [(7, 7), (3600, 60)], ids=["in reason", "deadly to the Session"]
)
def test_retry_after_is_a_lower_bound_up_to_a_minute(asked: int, least: int) -> None:
    """No server may talk a client into missing three heartbeats."""
    told = Ending(1013, retry_after=timedelta(seconds=asked))

    assert _pauses(2, told, chance=0.0) == [least, least]
    assert _pauses(2, told) == [least + 1, least + 1]


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 27.0), (0.5, 30.0), (1.0, 33.0)])
def test_beats_are_a_tenth_early_or_late(chance: float, seconds: float) -> None:
    """Thirty seconds, give or take three."""
    pause = Timing().beat_after(timedelta(seconds=30), chance=chance)

    assert pause.total_seconds() == pytest.approx(seconds)
