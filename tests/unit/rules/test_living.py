"""Active: what silence does, and that nothing short of a won claim ends anybody."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.support.builders import (
    NOW,
    decide,
    kinds,
    make_life,
    make_metadata,
    make_session,
    make_vitals,
)

from gpusession.api.session import (
    EXPIRY_OVERRIDE_ANNOTATION,
    REVOKE_ANNOTATION,
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
    Reopen,
    Requeue,
    TellClients,
    TellWouldEnd,
)
from gpusession.rules.conditions import find
from gpusession.rules.expiry import NoData, Unheard
from gpusession.rules.observation import ABSENT, UNSEEN, Claimed, Outcome
from gpusession.rules.returning import is_cancellable

SILENCES = [Reason.HEARTBEAT_LOST, Reason.DISCONNECTED, Reason.IDLE]
LOST = make_life(Reason.HEARTBEAT_LOST)
PAUSED = make_life(Reason.HEARTBEAT_LOST, held="most are silent", pauses=True)


def active(**spec: Any) -> Session:
    """Give a bound Session."""
    return make_session(Phase.ACTIVE, **spec)


def won(reason: Reason = Reason.HEARTBEAT_LOST) -> Claimed:
    """Give a claim that nobody came before."""
    return Claimed(reason, Outcome.WON)


def test_who_may_still_be_heard_is_looked_at_again_soon() -> None:
    """Nothing is claimed, and nobody waits for the next lease."""
    status, actions = decide(active(), life=replace(LOST, liveness=Unheard()))

    assert status.phase is Phase.ACTIVE
    assert actions == (Requeue(timedelta(seconds=1)),)


@pytest.mark.parametrize("reason", SILENCES)
def test_silence_is_claimed_before_it_is_written(reason: Reason) -> None:
    """Claim and returning client meet in Redis, and the claim names the record it judged."""
    status, actions = decide(active(), life=make_life(reason))

    assert status.phase is Phase.ACTIVE
    assert actions == (Claim(RecordState.RELEASING, reason, timedelta(), 7, NOW),)


def test_silence_with_a_grace_is_claimed_for_the_grace() -> None:
    """A claim that may be taken back is another one."""
    _, actions = decide(active(destroy_grace_seconds=60), life=LOST)

    grace = timedelta(seconds=60)
    assert actions == (Claim(RecordState.PENDING, Reason.HEARTBEAT_LOST, grace, 7, NOW),)


@pytest.mark.parametrize("reason", SILENCES)
def test_won_claim_ends_the_session(reason: Reason) -> None:
    """The status says why; the release waits until it is written."""
    status, actions = decide(active(), claimed=won(reason))

    assert (status.phase, status.reason) == (Phase.PENDING_DESTROY, reason)
    assert actions == (RecordStatus(),)


def test_lost_heartbeat_shows_in_its_condition() -> None:
    """HeartbeatHealthy is False from then on, in the same write."""
    status, _ = decide(active(), claimed=won())

    healthy = find(status, ConditionType.HEARTBEAT_HEALTHY)
    assert healthy is not None
    assert healthy.status is ConditionStatus.FALSE


@pytest.mark.parametrize("outcome", [Outcome.RETURNED, Outcome.UNKNOWN])
def test_claim_that_was_not_won_ends_nobody(outcome: Outcome) -> None:
    """A client was heard meanwhile, or Redis was not."""
    status, actions = decide(active(), life=LOST, claimed=Claimed(Reason.HEARTBEAT_LOST, outcome))

    assert (status.phase, actions) == (Phase.ACTIVE, ())


@pytest.mark.parametrize(
    "life",
    [
        pytest.param(None, id="nobody asked"),
        pytest.param(UNSEEN, id="Redis is silent"),
        pytest.param(make_life(), id="fresh"),
        pytest.param(make_life(liveness=NoData("no watch")), id="no data"),
        pytest.param(make_life(Reason.IDLE, held="not its turn"), id="others first"),
    ],
)
def test_anything_less_than_proof_does_nothing(life: Any) -> None:
    """No action, and no write either."""
    status, actions = decide(active(), life=life)

    assert (status.phase, actions) == (Phase.ACTIVE, ())


def test_missing_record_is_made_again() -> None:
    """Lost data is rebuilt from the Session, and ends nobody."""
    assert decide(active(), life=ABSENT)[1] == (OpenRecord(),)


@pytest.mark.parametrize("stage", [RecordState.PENDING, RecordState.RELEASING, RecordState.GONE])
def test_claim_that_was_never_written_is_taken_back(stage: RecordState) -> None:
    """A controller died between claim and status; the Session is Active and stays so."""
    life = make_life(Reason.HEARTBEAT_LOST, vitals=make_vitals(stage=stage))

    assert decide(active(), life=life)[1] == (Reopen(),)


def test_full_brake_is_said_once() -> None:
    """ExpiryPaused tells people why a silent Session goes on."""
    status, actions = decide(active(), life=PAUSED)
    again = decide(make_session(status=status), life=PAUSED)

    paused = find(status, ConditionType.EXPIRY_PAUSED)
    assert paused is not None
    assert (paused.reason, paused.message) == (Reason.MASS_SILENCE, "most are silent")
    assert (actions, again[1]) == ((RecordStatus(),), ())


def test_end_of_the_pause_is_said_too() -> None:
    """A client was heard again, so the condition goes."""
    status, _ = decide(active(), life=PAUSED)

    after, actions = decide(make_session(status=status), life=make_life())

    assert find(after, ConditionType.EXPIRY_PAUSED) is None
    assert actions == (RecordStatus(),)


def test_end_takes_the_pause_with_it() -> None:
    """A Session that ends is not paused."""
    status, _ = decide(active(), life=PAUSED)

    after, _ = decide(make_session(status=status), claimed=won())

    assert find(after, ConditionType.EXPIRY_PAUSED) is None


@pytest.mark.parametrize(
    ("reason", "seen"),
    [
        pytest.param(
            Reason.REVOKED,
            {"metadata": make_metadata(annotations={REVOKE_ANNOTATION: ""})},
            id="annotation",
        ),
        pytest.param(
            Reason.REVOKED, {"life": make_life(vitals=make_vitals(revoked=True))}, id="tokens"
        ),
        pytest.param(
            Reason.EXPLICIT_CLOSE, {"life": make_life(vitals=make_vitals(closed=True))}, id="close"
        ),
    ],
)
def test_what_the_client_side_asked_for_needs_no_claim(
    reason: Reason, seen: dict[str, Any]
) -> None:
    """Revoked and closed pass brake and claim."""
    metadata = seen.pop("metadata", None)

    status, actions = decide(make_session(Phase.ACTIVE, metadata=metadata), **seen)

    assert (status.phase, status.reason) == (Phase.PENDING_DESTROY, reason)
    assert actions == (RecordStatus(), TellClients(reason))


@pytest.mark.parametrize(("seconds", "ends"), [(3599, False), (3600, True)])
def test_lifetime_needs_no_redis(seconds: int, ends: bool) -> None:
    """It counts from activeSince, in etcd."""
    session = active(max_lifetime_seconds=3600)

    status, _ = decide(session, now=NOW + timedelta(seconds=seconds))

    assert (status.reason == Reason.LIFETIME_EXCEEDED) is ends


def test_observe_mode_only_tells() -> None:
    """Neither silence nor lifetime ends a Session whose Namespace asks for that."""
    silence = decide(active(), life=LOST, observe_only=True)
    lifetime = decide(active(), now=NOW + timedelta(days=2), observe_only=True)

    assert silence[1] == (TellWouldEnd(Reason.HEARTBEAT_LOST),)
    assert lifetime[1] == (TellWouldEnd(Reason.LIFETIME_EXCEEDED),)
    assert silence[0].phase is lifetime[0].phase is Phase.ACTIVE


def test_observe_mode_tells_once_in_a_visit() -> None:
    """Else the visit would go round until it is cut off, again and again."""
    silence = decide(active(), life=LOST, observe_only=True, told_would_end=True)
    old = NOW + timedelta(days=2)
    lifetime = decide(active(), now=old, observe_only=True, told_would_end=True)

    assert (silence[1], lifetime[1]) == ((), ())


@pytest.mark.parametrize(("final", "seconds"), [(True, 60), (False, 0)])
def test_what_was_claimed_is_written_whatever_the_spec_says_by_now(
    *, final: bool, seconds: int
) -> None:
    """Clients were told that they may return, or that they may not."""
    claimed = Claimed(Reason.HEARTBEAT_LOST, Outcome.WON, final=final)

    status, _ = decide(active(destroy_grace_seconds=seconds), claimed=claimed)

    assert is_cancellable(status) is not final


def test_observe_mode_ends_what_was_asked_to_end() -> None:
    """A deleted Session must not stay for ever."""
    session = make_session(Phase.ACTIVE, metadata=make_metadata(deleted=True))

    assert decide(session, observe_only=True)[0].phase is Phase.PENDING_DESTROY


def test_override_of_the_brake_is_read_from_the_annotation() -> None:
    """An empty signature is none."""
    signed = make_metadata(annotations={EXPIRY_OVERRIDE_ANNOTATION: "ada"})
    empty = make_metadata(annotations={EXPIRY_OVERRIDE_ANNOTATION: ""})

    assert (signed.expiry_override_by, empty.expiry_override_by) == ("ada", None)


def test_changed_settings_reach_the_record() -> None:
    """A new heartbeat or idle time counts from now on."""
    session = make_session(Phase.ACTIVE, metadata=make_metadata(generation=2))

    assert kinds(decide(session)[1]) == (RecordStatus, OpenRecord)
