"""Pending: what a Session waits for, and that nothing is begun before it is durable."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.support.builders import (
    INTENT,
    NOW,
    after,
    decide,
    kinds,
    make_bind,
    make_metadata,
    make_node,
    make_pod,
    make_refusal,
    make_release,
    make_session,
    make_status,
)

from gpusession.api.cluster import OUT_OF_SERVICE_TAINT
from gpusession.api.release import Mode, Verdict
from gpusession.api.session import (
    ConditionStatus,
    ConditionType,
    Metadata,
    Phase,
    Reason,
    StateKeys,
)
from gpusession.rules.actions import (
    Bind,
    ClearState,
    Hold,
    Intent,
    OpenRecord,
    RecordStatus,
    Release,
    Requeue,
)
from gpusession.rules.conditions import find, holds
from gpusession.rules.observation import ABSENT, UNSEEN, Unreachable

YOUNG = timedelta(milliseconds=500)

WAITS: dict[str, tuple[Reason, Any]] = {
    "no pod": (Reason.POD_NOT_FOUND, ABSENT),
    "no node": (Reason.POD_UNSCHEDULED, make_pod(node=None)),
    "no label": (Reason.POD_NOT_MANAGED, make_pod(use=None)),
    "unknown label": (Reason.POD_NOT_MANAGED, make_pod(use="mine")),
    "shared": (Reason.SHARED_NOT_SUPPORTED, make_pod(use="shared")),
    "starting": (Reason.POD_NOT_RUNNING, make_pod(phase="Pending")),
    "ended": (Reason.POD_NOT_RUNNING, make_pod(phase="Failed")),
    "going": (Reason.POD_NOT_RUNNING, make_pod(ends=NOW, grace=timedelta(seconds=30))),
}
each_wait = pytest.mark.parametrize(("reason", "pod"), WAITS.values(), ids=WAITS.keys())

ANSWERS = {
    "unreachable": (Reason.AGENT_UNREACHABLE, Unreachable("no answer")),
    "in use": (Reason.POD_IN_USE, make_refusal(Reason.POD_IN_USE)),
    "blind": (Reason.DEVICE_NOT_OBSERVABLE, make_refusal(Reason.DEVICE_NOT_OBSERVABLE)),
}
each_answer = pytest.mark.parametrize(("reason", "answer"), ANSWERS.values(), ids=ANSWERS.keys())


def held(intent: Intent | None, **fields: Any) -> Metadata:
    """Give metadata with our finalizer and this intent."""
    return make_metadata(intent=intent, **fields)


@pytest.mark.parametrize("bind", [None, make_bind()], ids=["no answer", "answer"])
def test_nothing_is_begun_before_the_finalizer_is_there(bind: Any) -> None:
    """Finalizer and intent are one write, and the only effect until it is done."""
    _, actions = decide(make_session(), bind=bind)

    assert actions == (Hold(INTENT),)


def test_finalizer_without_intent_is_not_enough_to_bind() -> None:
    """The agent is called only after etcd knows of which Pod."""
    _, actions = decide(make_session(Phase.PENDING, metadata=held(None)))

    assert actions == (Hold(INTENT),)


def test_bind_claims_exactly_what_the_intent_says() -> None:
    """With finalizer and intent in place the agent is asked for that very Pod."""
    _, actions = decide(make_session(Phase.PENDING))

    assert actions == (Bind(INTENT),)


@each_wait
def test_session_that_cannot_be_bound_says_why(reason: Reason, pod: Any) -> None:
    """An old enough Session writes its reason once and then only looks again."""
    session = make_session(Phase.PENDING, metadata=held(None))

    first = decide(session, pod=pod)
    second = decide(after(session, first), pod=pod)

    ready = find(first[0], ConditionType.READY)
    assert (first[0].phase, first[0].reason) == (Phase.PENDING, reason)
    assert ready is not None
    assert (ready.status, ready.reason) == (ConditionStatus.FALSE, reason)
    assert first[1] == (RecordStatus(), Requeue())
    assert second[1] == (Requeue(),)


@each_wait
def test_young_session_waits_without_a_write(reason: Reason, pod: Any) -> None:
    """Most waits are over before anyone could read of them."""
    session = make_session(Phase.PENDING, metadata=held(None, age=YOUNG))

    status, actions = decide(session, pod=pod)

    assert actions == (Requeue(timedelta(seconds=1)),)  # created at a whole second
    assert status.reason != reason


@pytest.mark.parametrize("pod", [pod for _, pod in WAITS.values()], ids=WAITS.keys())
def test_unbindable_session_never_calls_an_agent(pod: Any) -> None:
    """A Pod that did not opt in, or does not run, is nobody's business."""
    _, actions = decide(make_session(metadata=held(None)), pod=pod)

    assert not {Bind, Release} & set(kinds(actions))


def test_young_session_without_a_node_waits_for_one_write_instead_of_two() -> None:
    """Finalizer and intent go together where the Pod is scheduled in time."""
    session = make_session(metadata=make_metadata(held=False, intent=None, age=YOUNG))

    _, actions = decide(session, pod=make_pod(node=None))

    assert kinds(actions) == (Requeue,)


def test_old_session_without_a_pod_gets_its_finalizer_all_the_same() -> None:
    """It is held before anyone is called, whenever the Pod comes."""
    _, actions = decide(make_session(), pod=ABSENT)

    assert actions == (Hold(None),)


def test_clock_behind_the_apiserver_does_not_make_a_session_young_for_long() -> None:
    """Created in our future means to wait the usual moment, not the difference."""
    session = make_session(metadata=held(None, age=-timedelta(hours=1)))

    _, actions = decide(session, pod=ABSENT)

    assert actions == (Requeue(timedelta(seconds=2)),)


@each_answer
def test_session_that_is_not_bound_stays_visible_and_tries_again(
    reason: Reason, answer: Any
) -> None:
    """A refusal or a silent agent is a reason in the status, and never an end."""
    status, actions = decide(make_session(Phase.PENDING), bind=answer)

    assert (status.phase, status.reason, status.active_since) == (Phase.PENDING, reason, None)
    assert actions == (RecordStatus(), Requeue())


def test_answered_bind_makes_the_session_active() -> None:
    """Active names the node, the Pod, the machine and the devices it was bound to."""
    status, actions = decide(make_session(Phase.PENDING), bind=make_bind())

    assert (status.phase, status.reason) == (Phase.ACTIVE, Reason.BOUND)
    assert (status.node_name, status.node_uid, status.pod_uid) == ("node-a", "n-1", "p-1")
    assert (status.gpu_uuids, status.active_since) == (("GPU-0",), "2026-01-02T03:04:05Z")
    assert actions == (RecordStatus(), OpenRecord())


@pytest.mark.parametrize("seen", [False, True])
def test_active_says_whether_anything_was_seen_held(*, seen: bool) -> None:
    """The devices of a bind may only be given; the agent says which it is."""
    status, _ = decide(make_session(Phase.PENDING), bind=make_bind(seen_holding=seen))

    assert (status.gpu_uuids, status.seen_holding) == (("GPU-0",), seen)


def test_unseen_pod_is_waited_for_in_silence() -> None:
    """Nobody could look: no reason is made up for that."""
    status, actions = decide(make_session(Phase.PENDING), pod=UNSEEN)

    assert (status.reason, status.conditions) == ("", ())
    assert actions == (Requeue(),)


@pytest.mark.parametrize(
    "session",
    [
        make_session(Phase.PENDING, metadata=held(None, deleted=True)),
        make_session(Phase.PENDING, metadata=held(None), desired_phase=Phase.DESTROYED),
        make_session(metadata=held(None, held=False), desired_phase=Phase.DESTROYED),
    ],
    ids=["deleted", "closed", "closed at first sight"],
)
def test_session_ended_before_any_intent_was_never_bound(session: Any) -> None:
    """Without an intent there is nothing to prove: Destroyed at once, verdict NotBound."""
    status, actions = decide(session)

    assert status.phase is Phase.DESTROYED
    assert status.release is not None
    assert status.release.verdict == Verdict.NOT_BOUND
    assert holds(status, ConditionType.GPU_RELEASED)
    assert holds(status, ConditionType.STATE_CLEARED)
    assert actions == (RecordStatus(),)


def test_finalizer_of_a_session_without_an_agent_carries_no_intent() -> None:
    """The Pod has a node, but nobody there could begin anything."""
    first_sight = make_session(metadata=held(None, held=False))

    assert decide(first_sight, agent_known=False)[1] == (Hold(None),)
    assert decide(first_sight)[1] == (Hold(INTENT),)


def test_without_an_agent_nothing_is_intended() -> None:
    """A Pod on a node that no agent serves: the wait is visible, its end is free."""
    waiting = make_session(metadata=held(None))

    status, actions = decide(waiting, agent_known=False)
    ended, _ = decide(make_session(metadata=held(None, deleted=True)), agent_known=False)

    assert status.reason == Reason.AGENT_UNREACHABLE
    assert actions == (RecordStatus(), Requeue())
    assert ended.phase is Phase.DESTROYED


def test_unbound_session_with_state_ends_when_its_keys_are_gone() -> None:
    """NotBound is entered at once, and the controller clears what no agent can."""
    keys = StateKeys(keys=("lab:chat:a",))
    session = make_session(metadata=held(None), desired_phase=Phase.DESTROYED, state=keys)

    status, actions = decide(session)
    ending = msgspec.structs.replace(session, status=status)

    assert (status.phase, actions) == (Phase.PENDING_DESTROY, (RecordStatus(),))
    assert holds(status, ConditionType.GPU_RELEASED)
    assert decide(ending)[1] == (ClearState(),)


def test_session_deleted_before_the_finalizer_is_let_go_untouched() -> None:
    """It leaves by itself; a write would only come too late."""
    session = make_session(metadata=make_metadata(held=False, intent=None, deleted=True))

    assert decide(session)[1] == ()


@pytest.mark.parametrize(
    "session",
    [
        make_session(Phase.PENDING, metadata=held(INTENT, deleted=True)),
        make_session(Phase.PENDING, desired_phase=Phase.DESTROYED),
    ],
    ids=["deleted", "closed"],
)
def test_session_ended_after_an_intent_is_ended_as_if_it_were_bound(session: Any) -> None:
    """The answer to the bind may be lost, so its Pod and node are asked about."""
    status, actions = decide(session)

    assert status.phase is Phase.PENDING_DESTROY
    assert (status.node_name, status.pod_uid, status.active_since) == ("node-a", "p-1", None)
    assert actions == (RecordStatus(),)


def test_session_that_was_never_active_leaves_the_pod_to_the_ledger() -> None:
    """Its bind may have been refused: IfBound, and no deletion of somebody else's Pod."""
    refused = make_session(Phase.PENDING, metadata=held(INTENT, deleted=True))
    ending = after(refused, decide(refused, bind=make_refusal(Reason.POD_IN_USE)))

    _, actions = decide(ending)

    assert actions == (Release(INTENT, Mode.IF_BOUND),)


REPLACED = make_pod("p-2", node="node-b")
NEW = Intent("node-b", "p-2")


def test_pod_replaced_before_an_intent_is_simply_the_pod() -> None:
    """Nothing was begun with the old one, so nothing is asked about it."""
    _, actions = decide(make_session(Phase.PENDING, metadata=held(None)), pod=REPLACED)

    assert actions == (Hold(NEW),)


def test_pod_replaced_after_an_intent_is_first_proven_empty() -> None:
    """The bind of the old Pod may have begun: its own node's ledger knows."""
    _, actions = decide(make_session(Phase.PENDING), pod=REPLACED)

    assert actions == (Release(INTENT, Mode.IF_BOUND, keeps_state=True),)


def test_intent_moves_on_once_the_old_pod_is_proven_empty() -> None:
    """Only a completing verdict lets the Session turn to the new Pod."""
    gone = make_release(Verdict.NOT_BOUND)

    _, actions = decide(make_session(Phase.PENDING), pod=REPLACED, release=gone)

    assert actions == (Hold(NEW),)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (make_release(Verdict.HELD), Reason.STILL_HELD),
        (make_release(Verdict.UNKNOWN), Reason.NOT_OBSERVABLE),
        (Unreachable("no answer"), Reason.AGENT_UNREACHABLE),
    ],
    ids=["held", "unknown", "unreachable"],
)
def test_unproven_old_pod_keeps_the_session_waiting(answer: Any, reason: Reason) -> None:
    """It says what is missing, and the new Pod is not claimed meanwhile."""
    status, actions = decide(make_session(Phase.PENDING), pod=REPLACED, release=answer)

    assert (status.phase, status.reason) == (Phase.PENDING, reason)
    assert actions == (RecordStatus(), Requeue())


@pytest.mark.parametrize(
    "node",
    [ABSENT, make_node(taints=(OUT_OF_SERVICE_TAINT,))],
    ids=["gone", "out of service"],
)
def test_intent_moves_on_when_the_old_node_is_gone(node: Any) -> None:
    """No agent is left to ask, and no memory either: waiting for it would never end."""
    _, actions = decide(make_session(Phase.PENDING), pod=REPLACED, node=node)

    assert actions == (Hold(NEW),)


def test_replaced_pod_is_bound_only_under_its_own_intent() -> None:
    """A Session never becomes Active on a Pod that its annotation does not name."""
    status, actions = decide(make_session(Phase.PENDING), pod=REPLACED, bind=make_bind())

    assert status.phase is not Phase.ACTIVE
    assert Bind not in kinds(actions)


def test_changed_spec_of_a_waiting_session_is_acknowledged() -> None:
    """ObservedGeneration follows even where the reason to wait stays the same."""
    waiting = after(
        make_session(metadata=held(None)), decide(make_session(metadata=held(None)), pod=ABSENT)
    )
    session = make_session(metadata=held(None, generation=2), status=waiting.status)

    status, actions = decide(session, pod=ABSENT)

    assert status.observed_generation == 2
    assert actions == (RecordStatus(), Requeue())


def test_new_session_is_not_young_in_the_eyes_of_a_later_phase() -> None:
    """Age only spares writes while Pending; it never delays an end."""
    session = make_session(metadata=make_metadata(age=YOUNG), status=make_status(Phase.ACTIVE))

    status, _ = decide(session, pod=ABSENT)

    assert status.phase is Phase.PENDING_DESTROY
