"""PendingDestroy: how far a release may go, and that only evidence completes it."""

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
    make_clearing,
    make_metadata,
    make_node,
    make_pod,
    make_release,
    make_session,
    make_status,
)

from gpusession.api.cluster import OUT_OF_SERVICE_TAINT
from gpusession.api.release import COMPLETING, Mode, Verdict
from gpusession.api.session import (
    ConditionStatus,
    ConditionType,
    OnRelease,
    Phase,
    PodRef,
    Reason,
    Session,
)
from gpusession.rules.actions import ClearState, DeletePod, RecordStatus, Release, Requeue
from gpusession.rules.conditions import find, holds
from gpusession.rules.observation import ABSENT, UNSEEN, Unreachable

ENDING = make_session(Phase.PENDING_DESTROY)
KEEPS_POD = make_session(
    Phase.PENDING_DESTROY, pod_refs=(PodRef(name="chat", on_release=OnRelease.NONE),)
)
SLOW = make_session(Phase.PENDING_DESTROY, termination_grace_period_seconds=40)
UNBOUND = make_session(status=make_status(Phase.PENDING_DESTROY, was_active=False))

SECOND = timedelta(seconds=1)
DELETE = DeletePod("chat", "p-1", SECOND)


def going(grace: timedelta, *, ends_in: timedelta = SECOND) -> Any:
    """Give a Pod whose deletion runs with this grace."""
    return make_pod(ends=NOW + ends_in, grace=grace)


ORDERS: dict[str, tuple[Session, Any, tuple[object, ...]]] = {
    "pod lives": (ENDING, make_pod(), (DELETE, Release(INTENT, Mode.END))),
    "pod starts over": (ENDING, make_pod(phase="Pending"), (DELETE, Release(INTENT, Mode.END))),
    "grace of its own": (
        SLOW,
        make_pod(),
        (DeletePod("chat", "p-1", timedelta(seconds=40)), Release(INTENT, Mode.END)),
    ),
    "pod stays": (KEEPS_POD, make_pod(), (Release(INTENT, Mode.END),)),
    "pod gone": (ENDING, ABSENT, (Release(INTENT, Mode.END),)),
    "pod replaced": (ENDING, make_pod("p-2"), (Release(INTENT, Mode.END),)),
    "our own deletion runs": (ENDING, going(SECOND), (Release(INTENT, Mode.END),)),
    "our own slow deletion runs": (SLOW, going(40 * SECOND), (Release(INTENT, Mode.END),)),
    "foreign deletion runs": (ENDING, going(30 * SECOND), (Release(INTENT, Mode.VERIFY),)),
    "foreign deletion is over": (
        ENDING,
        going(30 * SECOND, ends_in=timedelta()),
        (Release(INTENT, Mode.END),),
    ),
    "label withdrawn": (ENDING, make_pod(use=None), (Release(INTENT, Mode.VERIFY),)),
    "label changed": (ENDING, make_pod(use="shared"), (Release(INTENT, Mode.VERIFY),)),
    "never active": (UNBOUND, make_pod(), (Release(INTENT, Mode.IF_BOUND),)),
    "pod unseen": (ENDING, UNSEEN, (Requeue(),)),
}


@pytest.mark.parametrize(("session", "pod", "expected"), ORDERS.values(), ids=ORDERS.keys())
def test_release_goes_as_far_as_the_pod_allows(
    session: Session, pod: Any, expected: tuple[object, ...]
) -> None:
    """Only a consenting Pod that is ours is deleted and signalled; any other is looked at."""
    assert decide(session, pod=pod)[1] == expected


def test_pod_deletion_never_has_grace_zero() -> None:
    """Grace 0 would remove the object before kubelet has ended anything."""
    _, (deletion, _) = decide(ENDING)

    assert isinstance(deletion, DeletePod)
    assert deletion.grace >= SECOND


@pytest.mark.parametrize("verdict", sorted(COMPLETING))
def test_completing_verdict_with_cleared_state_destroys(verdict: Verdict) -> None:
    """Each of them rests on evidence, and is what the status shows for good."""
    status, actions = decide(ENDING, release=make_release(verdict))

    assert status.phase is Phase.DESTROYED
    assert status.release is not None
    assert status.release.verdict == verdict
    assert actions == (RecordStatus(),)


UNPROVEN: dict[str, tuple[Any, ConditionStatus, Reason]] = {
    "held": (make_release(Verdict.HELD), ConditionStatus.FALSE, Reason.STILL_HELD),
    "blind": (make_release(Verdict.UNKNOWN), ConditionStatus.UNKNOWN, Reason.NOT_OBSERVABLE),
    "unreachable": (
        Unreachable("no answer"),
        ConditionStatus.UNKNOWN,
        Reason.AGENT_UNREACHABLE,
    ),
}
each_unproven = pytest.mark.parametrize(
    ("answer", "value", "reason"), UNPROVEN.values(), ids=UNPROVEN.keys()
)


@each_unproven
def test_unproven_release_stays_and_says_what_is_missing(
    answer: Any, value: ConditionStatus, reason: Reason
) -> None:
    """It is written once, then tried again with growing pauses."""
    first = decide(ENDING, release=answer)
    second = decide(after(ENDING, first), release=answer)

    released = find(first[0], ConditionType.GPU_RELEASED)
    assert first[0].phase is Phase.PENDING_DESTROY
    assert released is not None
    assert (released.status, released.reason) == (value, reason)
    assert first[1] == (RecordStatus(), Requeue())
    assert second[1] == (Requeue(),)


@pytest.mark.parametrize("answer", [row[0] for row in UNPROVEN.values()], ids=UNPROVEN.keys())
def test_unproven_release_is_ordered_again(answer: Any) -> None:
    """The next visit knows nothing of the last answer and asks anew."""
    stuck = after(ENDING, decide(ENDING, release=answer))

    _, actions = decide(stuck)

    assert kinds(actions) == (DeletePod, Release)


def half_done() -> Session:
    """Give a Session whose memory is free and whose Redis state is not."""
    answer = make_release(state=make_clearing(cleared=False, keys_cleared=5))
    return after(ENDING, decide(ENDING, release=answer))


def test_state_that_is_not_cleared_keeps_the_session() -> None:
    """Free memory is half of the evidence; the half that is missing has its own reason."""
    status = half_done().status

    cleared = find(status, ConditionType.STATE_CLEARED)
    assert status.phase is Phase.PENDING_DESTROY
    assert holds(status, ConditionType.GPU_RELEASED)
    assert cleared is not None
    assert (cleared.status, cleared.reason) == (ConditionStatus.FALSE, Reason.REDIS_UNAVAILABLE)


def test_silent_agent_does_not_take_back_what_was_proven() -> None:
    """Then only the clearing waits for the agent, and says so."""
    status, _ = decide(half_done(), release=Unreachable("no answer"))

    cleared = find(status, ConditionType.STATE_CLEARED)
    assert holds(status, ConditionType.GPU_RELEASED)
    assert cleared is not None
    assert (cleared.status, cleared.reason) == (ConditionStatus.UNKNOWN, Reason.AGENT_UNREACHABLE)


def test_memory_that_is_held_again_takes_back_what_was_proven() -> None:
    """A process that came back is evidence too; Destroyed waits for it."""
    status, _ = decide(half_done(), release=make_release(Verdict.HELD))

    assert status.phase is Phase.PENDING_DESTROY
    assert not holds(status, ConditionType.GPU_RELEASED)


def test_second_clearing_completes_and_keeps_the_count_of_the_first() -> None:
    """KeysCleared never falls from one try to the next."""
    status, _ = decide(half_done(), release=make_release(state=make_clearing(keys_cleared=2)))

    assert status.phase is Phase.DESTROYED
    assert status.release is not None
    assert status.release.keys_cleared == 5


SILENT = Unreachable("nobody answers")
LOST_NODES = {
    "gone": ABSENT,
    "replaced": make_node("n-2"),
    "out of service": make_node(taints=(OUT_OF_SERVICE_TAINT,)),
}
each_lost_node = pytest.mark.parametrize("node", LOST_NODES.values(), ids=LOST_NODES.keys())


@each_lost_node
@pytest.mark.parametrize("pod", [make_pod(), ABSENT, UNSEEN], ids=["pod", "no pod", "unseen"])
def test_lost_node_without_agent_leaves_only_the_state_to_clear(node: Any, pod: Any) -> None:
    """Where no agent answers any more, Redis is cleared from here."""
    _, actions = decide(ENDING, node=node, pod=pod, release=SILENT)

    assert actions == (ClearState(),)


def test_agent_of_a_deleted_node_is_asked_first() -> None:
    """The object went, the machine may live on: then its agent frees and sees."""
    _, asked = decide(ENDING, node=ABSENT)
    status, _ = decide(ENDING, node=ABSENT, release=make_release(Verdict.FREED))

    assert isinstance(asked[-1], Release)
    assert status.release is not None
    assert status.release.verdict == Verdict.FREED


def test_agent_of_a_node_that_is_out_of_service_is_not_asked() -> None:
    """Somebody has declared that nothing runs there."""
    _, actions = decide(ENDING, node=LOST_NODES["out of service"])

    assert actions == (ClearState(),)


@each_lost_node
def test_lost_node_with_cleared_state_is_the_end(node: Any) -> None:
    """Memory does not outlive its machine: NodeGone, and never Freed."""
    cleared = make_clearing(keys_cleared=3)
    status, actions = decide(ENDING, node=node, release=SILENT, cleared=cleared)

    assert status.phase is Phase.DESTROYED
    assert status.release is not None
    assert (status.release.verdict, status.release.keys_cleared) == (Verdict.NODE_GONE, 3)
    assert actions == (RecordStatus(),)


def test_lost_node_without_redis_waits_for_redis() -> None:
    """The half that is proven is written, and the other one is tried again."""
    missing = make_clearing(cleared=False)

    first = decide(ENDING, node=ABSENT, release=SILENT, cleared=missing)
    second = decide(after(ENDING, first), node=ABSENT, cleared=missing)

    assert first[0].phase is Phase.PENDING_DESTROY
    assert holds(first[0], ConditionType.GPU_RELEASED)
    assert (first[1], second[1]) == ((RecordStatus(), Requeue()), (Requeue(),))


def test_blind_look_does_not_take_back_what_was_proven() -> None:
    """Nobody could look again: the clearing waits, the verdict stands."""
    status, _ = decide(half_done(), release=make_release(Verdict.UNKNOWN))

    assert holds(status, ConditionType.GPU_RELEASED)
    assert status.phase is Phase.PENDING_DESTROY


def test_node_that_is_lost_after_the_release_does_not_change_its_verdict() -> None:
    """Freed was seen, and stays what the evidence says."""
    status, _ = decide(half_done(), node=ABSENT, cleared=make_clearing())

    assert status.release is not None
    assert status.release.verdict == Verdict.FREED


@pytest.mark.parametrize("node", [UNSEEN, make_node()], ids=["unseen", "fine"])
def test_only_a_node_that_is_proven_lost_replaces_the_agent(node: Any) -> None:
    """A node that nobody could look at still has its memory."""
    _, actions = decide(ENDING, node=node, cleared=make_clearing())

    assert Release in kinds(actions)


def overridden(session: Session) -> Session:
    """Give the Session after Ada gave up on its evidence."""
    return make_session(status=session.status, metadata=make_metadata(override_by="ada"))


def test_override_waits_for_one_try() -> None:
    """Whoever gives up on the evidence does not keep it from being found."""
    _, actions = decide(overridden(ENDING))

    assert kinds(actions) == (DeletePod, Release)


@pytest.mark.parametrize("answer", [row[0] for row in UNPROVEN.values()], ids=UNPROVEN.keys())
def test_override_ends_without_evidence_and_names_the_human(answer: Any) -> None:
    """Who gave up, and when, stands where the evidence would stand."""
    status, actions = decide(overridden(ENDING), release=answer)

    released = find(status, ConditionType.GPU_RELEASED)
    assert status.phase is Phase.DESTROYED
    assert status.release is not None
    assert status.release.verdict == Verdict.OVERRIDDEN
    assert released is not None
    assert released.message == "ada gave up on the evidence at 2026-01-02T03:04:05Z"
    assert actions == (RecordStatus(),)


def test_evidence_that_comes_in_time_is_not_overridden() -> None:
    """Freed is worth more than anybody's word."""
    status, _ = decide(overridden(ENDING), release=make_release())

    assert status.release is not None
    assert status.release.verdict == Verdict.FREED


def test_override_replaces_only_the_half_that_is_missing() -> None:
    """Memory that was seen free is Freed, whoever gives up on Redis."""
    status, _ = decide(overridden(half_done()), release=Unreachable("no answer"))

    cleared = find(status, ConditionType.STATE_CLEARED)
    assert status.release is not None
    assert status.release.verdict == Verdict.FREED
    assert cleared is not None
    assert cleared.reason == Reason.OVERRIDDEN


def test_override_of_a_lost_node_gives_up_on_its_state_only() -> None:
    """The memory is gone with the machine, whether Redis answers or not."""
    missing = make_clearing(cleared=False)

    status, _ = decide(overridden(ENDING), node=ABSENT, release=SILENT, cleared=missing)

    assert status.phase is Phase.DESTROYED
    assert status.release is not None
    assert status.release.verdict == Verdict.NODE_GONE


def test_reason_that_this_version_does_not_know_does_not_stop_the_end() -> None:
    """A newer operator may have opened it, and then have been rolled back."""
    status = msgspec.structs.replace(ENDING.status, reason="FromTheFuture")

    ended, _ = decide(make_session(status=status), release=make_release())

    finished = find(ended, ConditionType.FINISHED)
    assert finished is not None
    assert finished.reason == "FromTheFuture"
