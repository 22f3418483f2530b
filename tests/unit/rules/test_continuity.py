"""A watch of Redis goes on only while nothing at all speaks against it."""

from datetime import timedelta
from typing import Any

import pytest
from tests.support.builders import NOW

from gpusession.rules.continuity import (
    Break,
    Tick,
    Tolerances,
    Watch,
    heard_from,
    is_recent,
    restarted,
    watched,
)

TOLERANCES = Tolerances()


def make_tick(at: float = 100.0, **fields: Any) -> Tick:
    """Give a tick that fits the others: the server's clock and ours go alike."""
    defaults: dict[str, Any] = {
        "run_id": "run-1",
        "replication_id": "repl-1",
        "is_primary": True,
        "remembers": True,
        "now": NOW + timedelta(seconds=at),
        "gateways": 1,
        "sent_at": at,
        "answered_at": at + 0.01,
    }
    return Tick(**defaults | fields)


def follow(*ticks: Tick) -> Watch:
    """Watch these ticks from the start."""
    watch = Watch()
    for tick in ticks:
        watch = watched(watch, tick, tolerances=TOLERANCES)
    return watch


def test_first_tick_begins_a_watch() -> None:
    """A new leader has watched nothing yet."""
    watch = follow(make_tick(100))

    assert (watch.since, watch.broken_by) == (NOW + timedelta(seconds=100), Break.FIRST)


@pytest.mark.parametrize(("took", "steady"), [(0.98, None), (1.1, 106.1)])
def test_a_stall_that_breaks_nothing_asks_for_a_moment(took: float, steady: float | None) -> None:
    """In it beats may have waited, or been given up: they come first."""
    watch = follow(make_tick(100), make_tick(100 + took))

    assert watch.since == NOW + timedelta(seconds=100)
    assert watch.steady_from == (None if steady is None else NOW + timedelta(seconds=steady))
    later = watched(watch, make_tick(100 + took + 0.25), tolerances=TOLERANCES)
    assert later.steady_from == watch.steady_from


def test_a_new_watch_is_steady() -> None:
    """It asks for a whole threshold anyway."""
    watch = follow(make_tick(100), make_tick(102), make_tick(102.25, remembers=False))

    assert watch.steady_from is None


def test_quiet_ticks_go_on_with_it() -> None:
    """The watch is as old as its first tick."""
    watch = follow(*(make_tick(100 + i / 4) for i in range(400)))

    assert (watch.since, watch.broken_by) == (NOW + timedelta(seconds=100), None)


@pytest.mark.parametrize(
    ("why", "second"),
    [
        pytest.param(Break.SERVER, make_tick(101, run_id="run-2"), id="restarted"),
        pytest.param(Break.SERVER, make_tick(101, replication_id="repl-2"), id="failed over"),
        pytest.param(Break.REWOUND, make_tick(101, remembers=False), id="wiped or older copy"),
        pytest.param(Break.GAP, make_tick(105.1), id="we slept"),
        pytest.param(
            Break.GAP,
            make_tick(101, answered_at=105.1, now=NOW + timedelta(seconds=105)),
            id="slow",
        ),
        pytest.param(Break.CLOCK, make_tick(101, now=NOW + timedelta(hours=1)), id="clock ahead"),
        pytest.param(Break.CLOCK, make_tick(101, now=NOW), id="clock back"),
    ],
)
def test_any_doubt_begins_anew(why: Break, second: Tick) -> None:
    """Whatever may have lost or hidden a beat starts everybody's threshold again."""
    watch = follow(make_tick(100), second)

    assert (watch.since, watch.heard_since, watch.broken_by) == (second.now, second.now, why)


@pytest.mark.parametrize("drift", [-0.9, 0.9])
def test_slewing_clock_is_no_break(drift: float) -> None:
    """NTP may correct a clock by less than the tolerance."""
    second = make_tick(101, now=NOW + timedelta(seconds=101 + drift))

    assert follow(make_tick(100), second).broken_by is None


def test_slow_answer_explains_a_clock_difference() -> None:
    """The server reads its clock at some moment between our sending and its answer."""
    second = make_tick(101, now=NOW + timedelta(seconds=103), answered_at=104.0)

    assert follow(make_tick(100), second).broken_by is None


def test_nothing_is_known_of_a_replica() -> None:
    """What a replica has not received yet looks like silence."""
    watch = follow(make_tick(100), make_tick(101, is_primary=False))

    assert (watch.since, watch.heard_since, watch.broken_by) == (None, None, Break.REPLICA)


def test_watch_returns_with_the_primary() -> None:
    """It begins anew, with the first tick that counts."""
    third = make_tick(102)

    watch = follow(make_tick(100), make_tick(101, is_primary=False), third)

    assert watch.since == third.now


def test_without_a_gateway_nobody_is_heard() -> None:
    """Clients had nobody to talk to, so their silence begins with the next gateway."""
    watch = follow(make_tick(100), make_tick(101, gateways=0))
    again = watched(watch, make_tick(102), tolerances=TOLERANCES)

    assert (watch.heard_since, watch.since) == (None, NOW + timedelta(seconds=100))
    assert again.heard_since == NOW + timedelta(seconds=102)


def test_restart_gives_everybody_a_whole_threshold() -> None:
    """After a pause of the brake, time counts from now."""
    watch = restarted(follow(make_tick(100), make_tick(101)))

    assert (watch.since, watch.heard_since) == (NOW + timedelta(seconds=101),) * 2
    assert restarted(Watch()) == Watch()


def test_restart_invents_no_gateway() -> None:
    """Without one, nobody is heard after it either."""
    watch = restarted(follow(make_tick(100), make_tick(101, gateways=0)))

    assert watch.heard_since is None


@pytest.mark.parametrize(("later", "recent"), [(0.0, True), (5.0, True), (5.1, False)])
def test_tick_speaks_for_the_server_only_for_a_while(later: float, *, recent: bool) -> None:
    """The server may have been away since, and beats with it."""
    tick = make_tick(100.0)

    assert is_recent(tick, 100.0 + later, tolerances=TOLERANCES) is recent


@pytest.mark.parametrize(("at", "since"), [(99, 100), (103, 103)], ids=["before", "after"])
def test_relief_moves_the_hearing_only_forward(at: int, since: int) -> None:
    """A relief before the watch adds nothing to it."""
    watch = heard_from(follow(make_tick(100), make_tick(104)), NOW + timedelta(seconds=at))

    assert watch.heard_since == NOW + timedelta(seconds=since)
    assert watch.since == NOW + timedelta(seconds=100)


def test_relief_invents_no_gateway() -> None:
    """Without one, nobody is heard after it either."""
    watch = follow(make_tick(100, gateways=0))

    assert heard_from(watch, NOW) == watch
