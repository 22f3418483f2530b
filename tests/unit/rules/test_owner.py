"""The owner of a Pod: what is said of it, when it is scaled down, and when it must not be."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.support.builders import (
    INTENT,
    NOW,
    decide,
    kinds,
    make_bind,
    make_clearing,
    make_node,
    make_owner,
    make_pod,
    make_release,
    make_session,
    make_status,
)

from gpusession.api.cluster import OwnerReference
from gpusession.api.release import Mode
from gpusession.api.session import (
    Condition,
    ConditionStatus,
    ConditionType,
    OnRelease,
    Phase,
    PodRef,
    Reason,
    Session,
)
from gpusession.rules.actions import DeletePod, Release, Requeue, ScaleOwner, Step
from gpusession.rules.conditions import find
from gpusession.rules.observation import ABSENT, UNSEEN, Owner, Unreachable, Unscaled
from gpusession.rules.owner import PATIENCE, concerns_owner, living_others, replicas_before


def asking(phase: Phase, on_release: OnRelease = OnRelease.SCALE_OWNER) -> Session:
    """Give a Session that asks for this fate of its Pod."""
    return make_session(phase, pod_refs=(PodRef(name="chat", on_release=on_release),))


ENDING = asking(Phase.PENDING_DESTROY)
OWNER = Owner(make_owner("Deployment"), "7", replicas=1)
OWNED = make_pod(owner=make_owner())
GOING = make_pod(owner=make_owner(), ends=NOW, grace=timedelta(seconds=1))
CRD = make_owner("Notebook", api_version="kubeflow.org/v1")


def told(decision: Step) -> Condition | None:
    """Give the condition of the owner after a decision."""
    return find(decision[0], ConditionType.OWNER_WILL_RECREATE)


def bound(on_release: OnRelease, owner: OwnerReference | None) -> Step:
    """Let a Session with a Pod of this owner become Active."""
    return decide(asking(Phase.PENDING, on_release), bind=make_bind(), pod=make_pod(owner=owner))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("ReplicaSet", Reason.OWNED_BY_REPLICA_SET),
        ("StatefulSet", Reason.OWNED_BY_STATEFUL_SET),
        ("DaemonSet", Reason.OWNED_BY_DAEMON_SET),
        ("Job", Reason.OWNED_BY_JOB),
        ("Sandbox", Reason.OWNED_BY_OTHER),
    ],
)
def test_deleting_an_owned_pod_is_warned_of_with_the_active_write(
    kind: str, reason: Reason
) -> None:
    """A user sees in advance that the owner makes another Pod, at no write of its own."""
    decision = bound(OnRelease.DELETE_POD, make_owner(kind))

    condition = told(decision)
    assert decision[0].phase is Phase.ACTIVE
    assert condition is not None
    assert (condition.status, condition.reason) == (ConditionStatus.TRUE, reason)
    assert "delete the owner" in condition.message
    assert ("ScaleOwner" in condition.message) == (kind.endswith("Set") and kind != "DaemonSet")


@pytest.mark.parametrize(
    ("on_release", "owner"),
    [
        (OnRelease.DELETE_POD, None),
        (OnRelease.NONE, make_owner()),
        (OnRelease.SCALE_OWNER, None),
        (OnRelease.SCALE_OWNER, make_owner()),
    ],
)
def test_nothing_is_said_in_advance_where_nothing_is_known(
    on_release: OnRelease, owner: OwnerReference | None
) -> None:
    """Pods without an owner, Pods that stay, and owners that will be scaled need no warning."""
    assert told(bound(on_release, owner)) is None


def test_an_owner_that_cannot_be_scaled_is_told_of_in_advance() -> None:
    """ScaleOwner on a custom owner is not going to work, and the user need not wait for that."""
    condition = told(bound(OnRelease.SCALE_OWNER, CRD))

    assert condition is not None
    assert condition.reason == Reason.OWNER_NOT_SCALABLE
    assert "Notebook chat" in condition.message


@pytest.mark.parametrize("spared", [0, 3], ids=["only replica", "last of a StatefulSet"])
def test_owner_is_scaled_before_its_pod_is_deleted(spared: int) -> None:
    """A deletion that came first would be answered with a new Pod."""
    owner = replace(OWNER, spared=spared, replicas=spared + 1)

    _, actions = decide(ENDING, pod=OWNED, owner=owner)

    second = timedelta(seconds=1)
    assert actions == (
        ScaleOwner(owner),
        DeletePod("chat", "p-1", second),
        Release(INTENT, Mode.END),
    )


UNTOUCHED: dict[str, dict[str, Any]] = {
    "more replicas": {"owner": replace(OWNER, replicas=2)},
    "not the last of a StatefulSet": {"owner": replace(OWNER, replicas=3, spared=1)},
    "another living Pod": {"owner": replace(OWNER, others=1)},
    "scaled already": {"owner": replace(OWNER, replicas=0)},
    "scaled below": {"owner": replace(OWNER, replicas=1, spared=3)},
    "gone": {"owner": ABSENT},
    "not to be scaled": {"owner": Unscaled(Reason.OWNER_SCALE_REFUSED, "no")},
    "pod has ended": {"owner": OWNER, "pod": make_pod(owner=make_owner(), phase="Failed")},
    "pod has no owner": {"pod": make_pod()},
}


@pytest.mark.parametrize("seen", UNTOUCHED.values(), ids=UNTOUCHED)
def test_owner_is_left_alone_where_another_pod_could_go(seen: dict[str, Any]) -> None:
    """Only a replica that is certainly ours is taken; the Session ends all the same."""
    _, actions = decide(ENDING, **{"pod": OWNED} | seen)

    assert kinds(actions) == (DeletePod, Release)


@pytest.mark.parametrize(
    "pod",
    [GOING, make_pod("p-2", owner=make_owner()), make_pod(owner=make_owner(), use=None), ABSENT],
    ids=["going", "replaced", "consent withdrawn", "gone"],
)
def test_owner_of_a_pod_that_is_not_deleted_is_left_alone(pod: Any) -> None:
    """What we do not delete was somebody else's doing, and so is what follows."""
    _, actions = decide(ENDING, pod=pod, owner=OWNER)

    assert kinds(actions) == (Release,)


def test_only_scale_owner_scales() -> None:
    """DeletePod says what it does."""
    _, actions = decide(asking(Phase.PENDING_DESTROY, OnRelease.DELETE_POD), pod=OWNED, owner=OWNER)

    assert kinds(actions) == (DeletePod, Release)


@pytest.mark.parametrize(
    ("waited", "expected"),
    [(timedelta(), (Requeue,)), (PATIENCE, (DeletePod, Release))],
    ids=["at first", "in the end"],
)
def test_unseen_owner_holds_up_the_release_for_a_while(waited: timedelta, expected: Any) -> None:
    """GPU memory does not wait for ever for an apiserver that cannot be asked."""
    _, actions = decide(ENDING, pod=OWNED, owner=UNSEEN, now=NOW + waited)

    assert kinds(actions) == expected


@pytest.mark.parametrize("waited", [timedelta(), PATIENCE])
def test_scaling_that_fails_holds_up_the_release_for_a_while(waited: timedelta) -> None:
    """The last try says that it is one."""
    _, actions = decide(ENDING, pod=OWNED, owner=OWNER, now=NOW + waited)

    assert actions[0] == ScaleOwner(OWNER, last_try=bool(waited))


DOWN = replace(OWNER, replicas=0)
SEEN: dict[str, tuple[dict[str, Any], ConditionStatus, Reason]] = {
    "scaled": ({"owner": DOWN}, ConditionStatus.FALSE, Reason.OWNER_SCALED),
    "scaled, and owned itself": (
        {"owner": replace(DOWN, owned_by=CRD)},
        ConditionStatus.UNKNOWN,
        Reason.OWNER_HAS_OWNER,
    ),
    "scaled up again": (
        {"owner": OWNER, "scaled": True},
        ConditionStatus.TRUE,
        Reason.OWNER_SCALED_UP,
    ),
    "more replicas": (
        {"owner": replace(OWNER, replicas=2)},
        ConditionStatus.TRUE,
        Reason.OWNER_HAS_OTHER_PODS,
    ),
    "other pods": (
        {"owner": replace(OWNER, others=1)},
        ConditionStatus.TRUE,
        Reason.OWNER_HAS_OTHER_PODS,
    ),
    "not scaled": ({"owner": OWNER}, ConditionStatus.TRUE, Reason.OWNER_NOT_SCALED),
    "refused": (
        {"owner": Unscaled(Reason.OWNER_SCALE_REFUSED, "no")},
        ConditionStatus.TRUE,
        Reason.OWNER_SCALE_REFUSED,
    ),
    "gone": ({"owner": ABSENT}, ConditionStatus.FALSE, Reason.OWNER_GONE),
    "unseen": ({"owner": UNSEEN}, ConditionStatus.UNKNOWN, Reason.OWNER_NOT_OBSERVABLE),
}


@pytest.mark.parametrize(("seen", "status", "reason"), SEEN.values(), ids=SEEN)
def test_the_end_comes_on_its_evidence_and_tells_of_the_owner(
    seen: dict[str, Any], status: ConditionStatus, reason: Reason
) -> None:
    """Whatever became of the owner, it neither proves nor prevents the end."""
    decision = decide(ENDING, pod=GOING, release=make_release(), **seen)

    condition = told(decision)
    assert decision[0].phase is Phase.DESTROYED
    assert condition is not None
    assert (condition.status, condition.reason) == (status, reason)


def test_an_end_without_an_agent_tells_of_the_owner_too() -> None:
    """The node went while its owner was scaled down."""
    seen = {"node": make_node("n-2"), "release": Unreachable("silent"), "cleared": make_clearing()}

    decision = decide(ENDING, pod=GOING, owner=DOWN, **seen)

    condition = told(decision)
    assert decision[0].phase is Phase.DESTROYED
    assert condition is not None
    assert condition.reason == Reason.OWNER_SCALED


def test_what_was_said_stays_when_nobody_can_look_any_more() -> None:
    """Later visits find the Pod gone and its owner out of sight."""
    earlier = decide(ENDING, pod=GOING, release=Unreachable("silent"), owner=DOWN)
    session = make_session(status=earlier[0], pod_refs=ENDING.spec.pod_refs)

    later = decide(session, pod=GOING, release=make_release(), owner=UNSEEN)

    assert told(later) == told(earlier)


UNCONCERNED: dict[str, tuple[Session, Any]] = {
    "living": (asking(Phase.ACTIVE), OWNED),
    "never active": (
        make_session(
            status=make_status(Phase.PENDING_DESTROY, was_active=False),
            pod_refs=ENDING.spec.pod_refs,
        ),
        OWNED,
    ),
    "not asked for": (asking(Phase.PENDING_DESTROY, OnRelease.DELETE_POD), OWNED),
    "another pod": (ENDING, make_pod("p-2", owner=make_owner())),
    "no owner": (ENDING, make_pod()),
    "no consent": (ENDING, make_pod(owner=make_owner(), use=None)),
}


@pytest.mark.parametrize(("session", "pod"), UNCONCERNED.values(), ids=UNCONCERNED)
def test_owner_is_not_looked_at_where_it_does_not_matter(session: Session, pod: Any) -> None:
    """A look costs requests: only the end of a Session that asked for it is worth them."""
    assert concerns_owner(ENDING.status, ENDING.spec, OWNED)
    assert not concerns_owner(session.status, session.spec, pod)


def test_pods_that_end_or_go_are_no_company() -> None:
    """Only a Pod that would have to die counts."""
    pods = [
        make_pod(),
        make_pod("p-2", phase="Failed"),
        make_pod("p-3", ends=NOW, grace=timedelta(seconds=30)),
        make_pod("p-4", phase="Pending"),
    ]

    assert living_others(pods, "p-1") == 1


@pytest.mark.parametrize(
    ("pod", "start", "below"),
    [
        ("chat-2", 0, 2),
        ("chat-2", 2, 0),
        ("chat-2", 3, None),
        ("other-2", 0, None),
        ("chat", 0, None),
    ],
)
def test_an_ordinal_counts_from_the_first(pod: str, start: int, below: int | None) -> None:
    """A StatefulSet of n replicas has the ordinals from start to start + n - 1."""
    assert replicas_before(pod, "chat", start=start) == below


def test_a_session_that_was_never_active_scales_nothing() -> None:
    """Its Pod may be somebody else's."""
    status = make_status(Phase.PENDING_DESTROY, was_active=False)
    session = make_session(status=status, pod_refs=ENDING.spec.pod_refs)

    _, actions = decide(session, pod=OWNED, owner=OWNER)

    assert kinds(actions) == (Release,)
