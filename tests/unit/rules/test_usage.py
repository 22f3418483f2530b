"""Busy needs work that is the Session's, NotBusy a whole window of seen silence."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusession.api.usage import Busy
from gpusession.rules.usage import GpuWork, Look, UsageLimits, judge, work_on, work_on_all

LIMITS = UsageLimits()
SILENT = GpuWork(device_percent=0, own_percent=0)
UNTOLD = GpuWork(device_percent=None, own_percent=None)


def _seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def _looks(*percents: int | None, period: float = 5) -> list[Look]:
    """Give looks that follow one another without a gap."""
    at = [_seconds(1000 + period * index) for index in range(len(percents) + 1)]
    spans = zip(at, at[1:], percents, strict=False)
    return [Look(since, until, percent, until - since) for since, until, percent in spans]


@pytest.mark.parametrize(
    ("work", "percent"),
    [
        (SILENT, 0),
        (replace(SILENT, own_percent=7), 7),
        (replace(SILENT, own_percent=7, unclaimed_percent=9), 7),
        (replace(SILENT, device_percent=80, others_percent=80), 0),
        (replace(SILENT, unclaimed_percent=9), None),
        (replace(SILENT, device_percent=80), None),
        (replace(SILENT, device_percent=80, is_alone=True), 80),
        (replace(SILENT, device_percent=None), 0),
        (UNTOLD, None),
        (replace(UNTOLD, is_alone=True), None),
        (replace(UNTOLD, device_percent=0), 0),
        (replace(UNTOLD, device_percent=80), None),
        (replace(UNTOLD, device_percent=80, is_alone=True), 80),
        (replace(SILENT, device_percent=80, others_percent=80, is_by_server=True), None),
        (replace(SILENT, own_percent=7, device_percent=80, is_by_server=True), 7),
        (replace(SILENT, is_by_server=True), 0),
    ],
    ids=[
        "seen silent",
        "own work",
        "own work beside nameless work",
        "a neighbour's work",
        "nameless work",
        "work that no sample explains",
        "unexplained, but nobody else is there",
        "silent, without a figure of the whole GPU",
        "nothing can be told",
        "nothing can be told of a Session alone",
        "nobody works on the whole GPU",
        "somebody works, but who",
        "works alone",
        "samples of an MPS server",
        "own samples below an MPS server",
        "nobody works through the MPS server",
    ],
)
def test_work_on_a_gpu_is_told_only_where_it_can_be(work: GpuWork, percent: int | None) -> None:
    """Silence counts where nothing contradicts it, and work only for who surely did it."""
    assert work_on(work, busy_percent=1) == percent


@pytest.mark.parametrize(
    ("percents", "joined"),
    [((0, 0), 0), ((0, 40), 40), ((None, 40), 40), ((None, 0), None), ((), None), ((None,), None)],
)
def test_work_on_one_gpu_is_enough_but_silence_must_be_seen_on_all(
    percents: tuple[int | None, ...], joined: int | None
) -> None:
    """A Session on two GPUs of which one cannot be read is not called silent."""
    assert work_on_all(percents, busy_percent=1) == joined


def test_a_whole_silent_window_is_not_busy() -> None:
    """Twelve looks of five seconds cover the minute."""
    looks = _looks(*[0] * 12)

    usage = judge(looks, now=looks[-1].at, limits=LIMITS)

    assert (usage.busy, usage.percent, usage.sampled) == (Busy.NOT_BUSY, 0, _seconds(60))


def test_silence_that_is_shorter_than_the_window_is_unknown() -> None:
    """An agent that just started has not looked for long enough."""
    looks = _looks(*[0] * 11)

    usage = judge(looks, now=looks[-1].at, limits=LIMITS)

    assert (usage.busy, usage.percent, usage.sampled) == (Busy.UNKNOWN, None, _seconds(55))


def test_work_makes_busy_at_once_and_for_one_window() -> None:
    """The first busy look is enough, blind ones around it or not; it is forgotten in time."""
    looks = _looks(None, 30, 60, None, *[0] * 12)

    assert judge(looks[:2], now=looks[1].at, limits=LIMITS).percent == 30
    assert judge(looks[:14], now=looks[13].at, limits=LIMITS).busy is Busy.BUSY
    assert judge(looks[:15], now=looks[14].at, limits=LIMITS).busy is Busy.UNKNOWN
    assert judge(looks, now=looks[15].at, limits=LIMITS).busy is Busy.NOT_BUSY


def test_work_below_the_limit_is_told_but_is_no_work() -> None:
    """Whoever raises the limit sees what stays below it."""
    looks = _looks(*[4] * 12)

    usage = judge(looks, now=looks[-1].at, limits=replace(LIMITS, busy_percent=5))

    assert (usage.busy, usage.percent) == (Busy.NOT_BUSY, 4)


@pytest.mark.parametrize("missing", range(1, 11))
def test_a_hole_between_looks_is_unknown(missing: int) -> None:
    """A look that failed was noted by nobody: its time was not seen."""
    looks = _looks(*[0] * 13)
    del looks[missing]

    assert judge(looks, now=looks[-1].at, limits=LIMITS).busy is Busy.UNKNOWN


def test_a_look_for_longer_than_the_driver_remembers_is_unknown() -> None:
    """The samples of its first seconds are gone."""
    looks = _looks(*[0] * 7, period=10.5)

    assert judge(looks, now=looks[-1].at, limits=LIMITS).busy is Busy.UNKNOWN


def test_an_old_last_look_is_unknown() -> None:
    """A loop that hangs must not repeat what it once saw."""
    looks = _looks(*[50] * 12)
    late = looks[-1].at + LIMITS.longest_silence

    assert judge(looks, now=late, limits=LIMITS).busy is Busy.BUSY
    assert judge(looks, now=late + _seconds(1), limits=LIMITS).busy is Busy.UNKNOWN


@given(st.lists(st.none() | st.just(0), max_size=20))
def test_not_busy_has_twelve_silent_looks_behind_it(percents: list[int | None]) -> None:
    """No mixture of blind and silent looks says more than the silent ones at its end."""
    looks = _looks(*percents)

    usage = judge(looks, now=_seconds(1000 + 5 * len(percents)), limits=LIMITS)

    seen_silent = len(percents) >= 12 and None not in percents[-12:]
    assert usage.busy is (Busy.NOT_BUSY if seen_silent else Busy.UNKNOWN)
