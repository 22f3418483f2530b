"""What a record proves: overdue only on evidence, and missing data is none."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.support.builders import NOW, make_spec, make_vitals, make_watch

from gpusession.api.session import Heartbeat, Idle, Reason, RecordState, SessionSpec
from gpusession.rules.continuity import Watch
from gpusession.rules.expiry import (
    Fresh,
    NoData,
    Overdue,
    Unheard,
    Vitals,
    grace_is_over,
    heartbeat_threshold,
    idle_timeout,
    judged,
)

DAY = timedelta(days=1)
BEATING = make_spec(heartbeat=Heartbeat())
QUIET = make_spec(heartbeat=Heartbeat(period_seconds=0), idle=Idle(timeout_seconds=0))
IDLING = make_spec(idle=Idle(signals=("Client",)))
COMPUTING = make_spec(idle=Idle(signals=("GPU",)))
BOTH = make_spec(idle=Idle())


def ago(**time: float) -> Any:
    """Give a moment of the past."""
    return NOW - timedelta(**time)


def silent(seconds: float, **fields: Any) -> Vitals:
    """Give the record of a client that was heard so long ago."""
    return make_vitals(**{"beat": ago(seconds=seconds), "first_due": ago(days=1)} | fields)


def unused(minutes: float, **fields: Any) -> Vitals:
    """Give the record of a Session that nobody has used for so long, watched by its agent."""
    gpu = {"gpu_seen": ago(seconds=30), "gpu_since": ago(days=1), "gpu_busy": ago(days=1)}
    return make_vitals(**{"activity": ago(minutes=minutes)} | gpu | fields)


PROOFS = [
    pytest.param(BEATING, silent(90), Reason.HEARTBEAT_LOST, id="three beats missed"),
    pytest.param(IDLING, unused(30), Reason.IDLE, id="unused"),
    pytest.param(BOTH, unused(30), Reason.IDLE, id="unused, and the GPU idle"),
    pytest.param(COMPUTING, unused(0), Reason.IDLE, id="only the GPU counts"),
    pytest.param(
        QUIET, silent(90, disconnected=ago(seconds=90)), Reason.DISCONNECTED, id="disconnected"
    ),
    pytest.param(BEATING, silent(95, disconnected=ago(seconds=90)), Reason.DISCONNECTED, id="both"),
]


@pytest.mark.parametrize(("spec", "vitals", "reason"), PROOFS)
def test_old_record_under_an_old_watch_is_proof(
    spec: SessionSpec, vitals: Vitals, reason: Reason
) -> None:
    """Each threshold ends what it is for."""
    liveness = judged(vitals, make_watch(DAY), spec)

    assert isinstance(liveness, Overdue)
    assert liveness.reason is reason


LIFE = [
    pytest.param(BEATING, silent(89.9), id="a beat in time"),
    pytest.param(BEATING, silent(900, first_due=NOW + timedelta(1)), id="first beat not due"),
    pytest.param(BEATING, silent(900, doubted=ago(seconds=60)), id="a lost token knocks"),
    pytest.param(QUIET, silent(9000), id="no beat expected"),
    pytest.param(make_spec(), silent(9000), id="nothing configured"),
    pytest.param(QUIET, silent(9, disconnected=ago(seconds=8)), id="within disconnect grace"),
    pytest.param(QUIET, silent(91, disconnected=ago(seconds=92)), id="a beat contradicts"),
    pytest.param(
        QUIET, silent(200, disconnected=ago(seconds=95), doubted=ago(seconds=9)), id="doubt"
    ),
    pytest.param(IDLING, unused(29.9), id="used lately"),
    pytest.param(IDLING, unused(60, busy_until=ago(minutes=29)), id="busy lease"),
    pytest.param(IDLING, unused(60, busy_until=NOW + timedelta(hours=1)), id="leased ahead"),
    pytest.param(IDLING, unused(60, doubted=ago(minutes=1)), id="unheard activity"),
    pytest.param(BOTH, unused(60, gpu_busy=ago(minutes=1)), id="GPU works"),
    pytest.param(BOTH, unused(60, gpu_seen=None, gpu_since=None), id="no agent ever said"),
    pytest.param(BOTH, unused(60, gpu_seen=ago(minutes=4)), id="agent is silent"),
    pytest.param(BOTH, unused(60, gpu_since=ago(minutes=29)), id="agent came back lately"),
    pytest.param(COMPUTING, unused(60, gpu_busy=ago(minutes=29)), id="computed lately"),
    pytest.param(QUIET, unused(6000), id="never idle"),
]


@pytest.mark.parametrize(("spec", "vitals"), LIFE)
def test_nothing_else_is_proof(spec: SessionSpec, vitals: Vitals) -> None:
    """A sign of life, or a gap in what is known, ends nobody."""
    assert isinstance(judged(vitals, make_watch(DAY), spec), Fresh)


@pytest.mark.parametrize(
    ("spec", "vitals", "threshold"),
    [
        pytest.param(BEATING, silent(9000), timedelta(seconds=90), id="heartbeat"),
        pytest.param(IDLING, unused(9000), timedelta(minutes=30), id="idle"),
        pytest.param(COMPUTING, unused(9000), timedelta(minutes=30), id="GPU"),
    ],
)
def test_nobody_is_overdue_before_a_whole_threshold_of_watching(
    spec: SessionSpec, vitals: Vitals, threshold: timedelta
) -> None:
    """Whatever a record says, it may have lost what came before the watch."""
    moment = timedelta(milliseconds=1)

    assert isinstance(judged(vitals, make_watch(threshold - moment), spec), Fresh)
    assert isinstance(judged(vitals, make_watch(threshold), spec), Overdue)


@pytest.mark.parametrize(
    ("spec", "vitals"),
    [
        pytest.param(BEATING, silent(9000), id="heartbeat"),
        pytest.param(IDLING, unused(9000), id="idle"),
        pytest.param(QUIET, silent(9000, disconnected=ago(seconds=95)), id="disconnect"),
    ],
)
def test_time_without_a_gateway_does_not_count(spec: SessionSpec, vitals: Vitals) -> None:
    """Nobody could be heard then."""
    lately = timedelta(seconds=89)

    assert isinstance(judged(vitals, make_watch(DAY, heard=lately), spec), Fresh)
    assert isinstance(judged(vitals, Watch(since=NOW - DAY), spec), Fresh)


def test_disconnect_before_the_watch_is_no_evidence() -> None:
    """It may stand in an older copy of the server, from before the client came back."""
    vitals = silent(200, disconnected=ago(seconds=100))

    assert isinstance(judged(vitals, make_watch(timedelta(seconds=99)), QUIET), Fresh)


def test_nothing_is_proven_without_a_watch() -> None:
    """Redis is a replica, or was never reached."""
    assert isinstance(judged(silent(9000), Watch(), BEATING), NoData)


@pytest.mark.parametrize(
    ("age", "heard", "over"),
    [
        (10.0, 10.0, True),
        (9.9, 9.9, False),
        (60.0, 9.9, False),
        (60.0, 60.0, True),
    ],
)
def test_grace_counts_only_time_in_which_a_client_could_return(
    age: float, heard: float, over: bool
) -> None:
    """An outage of Redis or of all gateways takes nothing from it."""
    vitals = make_vitals(stage=RecordState.PENDING, pending_until=NOW)
    watch = make_watch(timedelta(seconds=age), heard=timedelta(seconds=heard))

    assert grace_is_over(vitals, watch, make_spec(destroy_grace_seconds=10)) is over


def test_grace_is_not_over_where_its_end_is_unknown() -> None:
    """A record without an end, or an unwatched Redis, lets nothing begin."""
    vitals = make_vitals(stage=RecordState.PENDING, pending_until=NOW)

    assert not grace_is_over(make_vitals(), make_watch(), make_spec())
    assert not grace_is_over(vitals, Watch(), make_spec())


@pytest.mark.parametrize(("seconds", "over"), [(89.9, False), (90.0, True)])
def test_grace_in_which_the_watch_began_lasts_a_threshold_at_least(
    seconds: float, *, over: bool
) -> None:
    """A return may be lost, and whoever believes to have returned only beats."""
    vitals = make_vitals(stage=RecordState.PENDING, pending_until=ago(seconds=85))
    spec = make_spec(heartbeat=Heartbeat(), destroy_grace_seconds=10)

    assert grace_is_over(vitals, make_watch(timedelta(seconds=seconds)), spec) is over


def test_zero_and_null_mean_none() -> None:
    """`heartbeat: null` does not survive kubectl apply, so 0 says the same."""
    assert heartbeat_threshold(QUIET) == heartbeat_threshold(make_spec()) == timedelta()
    assert idle_timeout(QUIET) == idle_timeout(make_spec()) == timedelta()
    assert heartbeat_threshold(BEATING) == timedelta(seconds=90)


@pytest.mark.parametrize(("shown", "proof"), [(91.1, Unheard), (90.9, Unheard), (89.0, Overdue)])
def test_silence_counts_once_its_gateway_has_shown_itself_after_it(
    shown: float, proof: type
) -> None:
    """What a gateway that stood still has in its sockets may be a beat: it comes first."""
    vitals = silent(180, announced=ago(seconds=shown))  # due 90 s ago

    assert isinstance(judged(vitals, make_watch(DAY), BEATING), proof)


UNSTEADY = [
    pytest.param(BEATING, silent(91), id="silent"),
    pytest.param(QUIET, silent(200, disconnected=ago(seconds=95)), id="disconnected"),
]


@pytest.mark.parametrize(("spec", "vitals"), UNSTEADY)
def test_no_silence_counts_for_a_moment_after_redis_stood_still(
    spec: SessionSpec, vitals: Vitals
) -> None:
    """Beats and returns waited for it, and a claim must not come before them."""
    steady = make_watch(DAY)

    def after(seconds: float) -> Watch:
        return replace(steady, steady_from=NOW + timedelta(seconds=seconds))

    assert isinstance(judged(vitals, after(0.1), spec), Unheard)
    assert isinstance(judged(vitals, after(0.0), spec), Overdue)


def test_idleness_asks_nothing_of_gateways() -> None:
    """Half an hour is longer than anything stands still."""
    vitals = unused(30, announced=ago(hours=1))
    unsteady = replace(make_watch(DAY), steady_from=NOW + timedelta(seconds=5))

    assert isinstance(judged(vitals, unsteady, IDLING), Overdue)


@pytest.mark.parametrize(
    ("shown", "steady", "over"), [(-1.0, 0, True), (-0.9, 0, False), (-9.0, 0.1, False)]
)
def test_a_grace_is_over_once_a_return_would_have_been_heard(
    shown: float, steady: float, *, over: bool
) -> None:
    """Neither its gateway nor Redis may hold one back."""
    vitals = make_vitals(
        stage=RecordState.PENDING, pending_until=NOW, announced=NOW - timedelta(seconds=shown)
    )
    watch = replace(make_watch(DAY), steady_from=NOW + timedelta(seconds=steady))

    assert grace_is_over(vitals, watch, make_spec(destroy_grace_seconds=10)) is over


def test_a_doubt_puts_a_disconnect_off_for_its_grace() -> None:
    """Somebody knocked after it; not for ever, since anybody may knock."""
    vitals = silent(900, disconnected=ago(seconds=800), doubted=ago(seconds=89))

    assert isinstance(judged(vitals, make_watch(DAY), QUIET), Fresh)
    assert isinstance(
        judged(replace(vitals, doubted=ago(seconds=90)), make_watch(DAY), QUIET), Overdue
    )
