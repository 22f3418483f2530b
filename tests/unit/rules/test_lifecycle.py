"""The phase table of a Session: what ends it, what does not, and in which order it ends.

What happens inside Pending is in test_binding.py, inside PendingDestroy in test_releasing.py;
what must hold under any order of faults is in test_lifecycle_machine.py.
"""

from datetime import datetime, timedelta
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
from gpusession.api.session import ConditionType, Phase, Reason, Session
from gpusession.rules.actions import (
    Announce,
    Bind,
    DeletePod,
    DeleteSession,
    DropFinalizer,
    ForgetRecord,
    Hold,
    OpenRecord,
    RecordStatus,
    Release,
    Requeue,
    TellClients,
)
from gpusession.rules.conditions import find, holds
from gpusession.rules.observation import ABSENT, UNSEEN, Unreachable

PHASES = (None, Phase.PENDING, Phase.ACTIVE, Phase.PENDING_DESTROY, Phase.DESTROYED)

ENDS: dict[str, tuple[Reason, dict[str, Any]]] = {
    "pod object gone": (Reason.POD_GONE, {"pod": ABSENT}),
    "pod succeeded": (Reason.POD_TERMINATED, {"pod": make_pod(phase="Succeeded")}),
    "pod failed": (Reason.POD_TERMINATED, {"pod": make_pod(phase="Failed")}),
    "pod replaced": (Reason.POD_REPLACED, {"pod": make_pod("p-2")}),
    "node gone": (Reason.NODE_GONE, {"node": ABSENT}),
    "node replaced": (Reason.NODE_GONE, {"node": make_node("n-2")}),
    "node out of service": (Reason.NODE_GONE, {"node": make_node(taints=(OUT_OF_SERVICE_TAINT,))}),
}

LIVES: dict[str, dict[str, Any]] = {
    "all fine": {},
    "pod unseen": {"pod": UNSEEN},
    "node unseen": {"node": UNSEEN},
    "nothing seen": {"pod": UNSEEN, "node": UNSEEN},
    "pod phase unknown": {"pod": make_pod(phase="Unknown")},
    "pod pending again": {"pod": make_pod(phase="Pending")},
    "pod being deleted": {"pod": make_pod(ends=NOW, grace=timedelta(seconds=30))},
    "label withdrawn": {"pod": make_pod(use=None)},
    "another taint": {"node": make_node(taints=("node.kubernetes.io/unreachable",))},
    "another node": {"node": make_node("n-9", name="node-b", taints=(OUT_OF_SERVICE_TAINT,))},
    "agent unreachable": {"bind": Unreachable("no answer")},
    "bind refused now": {"bind": make_refusal(Reason.POD_IN_USE)},
}


def by_id(table: dict[str, Any]) -> dict[str, Any]:
    """Give a table to parametrize with its keys as ids."""
    return {"argvalues": table.values(), "ids": table.keys()}


def test_whole_life_takes_these_effects_in_this_order() -> None:
    """From first sight to gone, every step is durable before the next one acts."""
    deleted = make_metadata(deleted=True)
    lived = [
        decide(make_session()),
        decide(make_session(Phase.PENDING)),
        decide(make_session(Phase.PENDING), bind=make_bind()),
        decide(make_session(Phase.ACTIVE)),
        decide(make_session(Phase.ACTIVE, metadata=deleted)),
        decide(make_session(Phase.PENDING_DESTROY, metadata=deleted)),
        decide(make_session(Phase.PENDING_DESTROY, metadata=deleted), release=make_release()),
        decide(make_session(Phase.DESTROYED, metadata=deleted)),
    ]

    assert [kinds(actions) for _, actions in lived] == [
        (Hold,),
        (Bind,),
        (RecordStatus, OpenRecord),
        (),
        (RecordStatus, TellClients),
        (DeletePod, Release),
        (RecordStatus,),
        (ForgetRecord, Announce, DropFinalizer),
    ]


@pytest.mark.parametrize(("reason", "seen"), **by_id(ENDS))
def test_evidence_ends_an_active_session(reason: Reason, seen: dict[str, Any]) -> None:
    """What is proven gone ends the Session; the end is written before anything is done."""
    status, actions = decide(make_session(Phase.ACTIVE), **seen)

    assert (status.phase, status.reason) == (Phase.PENDING_DESTROY, reason)
    assert actions == (RecordStatus(), TellClients(reason))


@pytest.mark.parametrize("seen", **by_id(LIVES))
def test_nothing_less_than_evidence_ends_an_active_session(seen: dict[str, Any]) -> None:
    """Missing data, other people's taints and silent agents never end the living."""
    status, actions = decide(make_session(Phase.ACTIVE), **seen)

    assert (status.phase, actions) == (Phase.ACTIVE, ())


ASKED = {
    "deleted": (Reason.DELETED, {"metadata": make_metadata(deleted=True)}),
    "closed": (Reason.EXPLICIT_CLOSE, {"desired_phase": Phase.DESTROYED}),
    "both": (
        Reason.DELETED,
        {"metadata": make_metadata(deleted=True), "desired_phase": Phase.DESTROYED},
    ),
}


@pytest.mark.parametrize(("reason", "session"), **by_id(ASKED))
def test_active_session_ends_when_asked(reason: Reason, session: dict[str, Any]) -> None:
    """Delete and close open the end with their own reason."""
    status, actions = decide(make_session(Phase.ACTIVE, **session))

    assert (status.phase, status.reason) == (Phase.PENDING_DESTROY, reason)
    assert actions == (RecordStatus(), TellClients(reason))


def test_request_counts_more_than_what_is_seen_broken() -> None:
    """A deleted Session whose node is gone as well says Deleted: a human comes first."""
    session = make_session(Phase.ACTIVE, metadata=make_metadata(deleted=True))

    status, _ = decide(session, pod=ABSENT, node=ABSENT)

    assert status.reason == Reason.DELETED


def test_opened_end_can_be_read_off_the_conditions() -> None:
    """PendingDestroy says at once that neither memory nor state is proven gone."""
    status, _ = decide(make_session(Phase.ACTIVE), pod=ABSENT)

    written = {c.type: (c.status, c.reason) for c in status.conditions}
    assert written == {
        "Ready": ("False", "PodGone"),
        "PendingDestroy": ("True", "PodGone"),
        "GPUReleased": ("False", "Releasing"),
        "StateCleared": ("False", "WaitingForRelease"),
    }
    assert status.pending_destroy_since == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize("phase", [Phase.ACTIVE, Phase.PENDING_DESTROY, Phase.DESTROYED])
def test_step_never_binds_again_what_was_bound_once(phase: Phase) -> None:
    """A new Pod of the same name is never claimed by a Session that had another."""
    _, actions = decide(make_session(phase), pod=make_pod("p-2"))

    assert not {Bind, Hold} & set(kinds(actions))


def test_release_is_not_ordered_before_the_end_is_written() -> None:
    """A crash right after the decision leaves an Active Session whose Pod lives."""
    session = make_session(Phase.ACTIVE, metadata=make_metadata(deleted=True))

    first = decide(session)
    second = decide(after(session, first))

    assert kinds(first[1]) == (RecordStatus, TellClients)
    assert Release in kinds(second[1])


def test_finalizer_is_not_dropped_before_destroyed_is_written() -> None:
    """The evidence is in etcd before the Session may leave."""
    session = make_session(Phase.PENDING_DESTROY, metadata=make_metadata(deleted=True))

    first = decide(session, release=make_release())
    second = decide(after(session, first))

    assert kinds(first[1]) == (RecordStatus,)
    assert kinds(second[1])[-1] is DropFinalizer


def test_destroyed_session_closes_its_books() -> None:
    """Destroyed shows Finished and the evidence, and no condition of a living one."""
    status, _ = decide(make_session(Phase.PENDING_DESTROY), release=make_release())

    assert status.phase is Phase.DESTROYED
    assert {c.type for c in status.conditions} == {"Finished", "GPUReleased", "StateCleared"}
    assert status.release is not None
    assert status.release.verdict == "Freed"


def test_destroyed_without_finalizer_is_left_alone() -> None:
    """A closed Session that stays for its evidence costs nothing more."""
    _, actions = decide(make_session(Phase.DESTROYED, metadata=make_metadata(held=False)))

    assert actions == ()


def finished(ttl: int | None, *, deleted: bool = False) -> Session:
    """Give a Session that was destroyed at NOW and let go."""
    metadata = make_metadata(held=False, deleted=deleted)
    return make_session(Phase.DESTROYED, metadata=metadata, ttl_seconds_after_destroyed=ttl)


TTL: dict[str, tuple[Session, int, tuple[object, ...]]] = {
    "unset": (finished(None), 10**6, ()),
    "not yet": (finished(60), 59, (Requeue(timedelta(seconds=1)),)),
    "due": (finished(60), 60, (DeleteSession(), Requeue())),
    "at once": (finished(0), 0, (DeleteSession(), Requeue())),
    "deleted already": (finished(60, deleted=True), 61, ()),
}


@pytest.mark.parametrize(("session", "later", "expected"), **by_id(TTL))
def test_time_to_live_counts_from_destroyed(
    session: Session, later: int, expected: tuple[object, ...]
) -> None:
    """The object goes when its time is up, and one request is enough for that."""
    _, actions = decide(session, now=NOW + timedelta(seconds=later))

    assert actions == expected


def test_time_to_live_does_not_run_while_the_finalizer_is_there() -> None:
    """Letting go comes first; a delete before it would only add a second writer."""
    session = make_session(Phase.DESTROYED, ttl_seconds_after_destroyed=0)

    _, actions = decide(session, now=NOW + timedelta(hours=1))

    assert DeleteSession not in kinds(actions)


def test_changed_spec_of_an_active_session_is_acknowledged_once() -> None:
    """ObservedGeneration follows in the status and in Ready, then there is silence."""
    session = make_session(Phase.ACTIVE, metadata=make_metadata(generation=2))

    first = decide(session)
    second = decide(after(session, first))

    ready = find(first[0], ConditionType.READY)
    assert first[1] == (RecordStatus(), OpenRecord())
    assert (first[0].observed_generation, ready and ready.observed_generation) == (2, 2)
    assert second[1] == ()


def test_acknowledged_change_does_not_move_the_transition_time() -> None:
    """Ready stays True, so its lastTransitionTime stays too."""
    session = make_session(Phase.ACTIVE, metadata=make_metadata(generation=2))

    status, _ = decide(session, now=NOW + timedelta(hours=1))

    ready = find(status, ConditionType.READY)
    assert ready is not None
    assert ready.last_transition_time == "2026-01-02T03:04:05Z"


def test_rebind_of_an_active_session_repeats_its_own_bind() -> None:
    """A lost ledger and a lost record heal from what the Session itself says."""
    _, actions = decide(make_session(Phase.ACTIVE), rebind_due=True)

    assert actions == (Bind(INTENT), OpenRecord())


@pytest.mark.parametrize(
    "answer",
    [
        make_bind(gpu_uuids=(), seen_holding=False),
        Unreachable("no answer"),
        make_refusal(Reason.AGENT_REFUSED),
    ],
    ids=["nothing new", "unreachable", "refused"],
)
def test_answer_to_a_rebind_without_news_writes_nothing(answer: Any) -> None:
    """Repeating binds costs the apiserver nothing."""
    _, actions = decide(make_session(Phase.ACTIVE), rebind_due=True, bind=answer)

    assert actions == ()


def test_devices_seen_later_are_added_and_never_forgotten() -> None:
    """GpuUUIDs is every device that the Pod ever had or was seen holding."""
    status = msgspec.structs.replace(make_status(Phase.ACTIVE), gpu_uuids=("GPU-1",))

    written, actions = decide(make_session(status=status), bind=make_bind(gpu_uuids=("GPU-0",)))

    assert written.gpu_uuids == ("GPU-0", "GPU-1")
    assert actions == (RecordStatus(),)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("now", [False, True])
def test_holding_once_seen_is_never_unseen(*, before: bool, now: bool) -> None:
    """A device that was only given is no sight, and no later bind takes a sight back."""
    status = msgspec.structs.replace(
        make_status(Phase.ACTIVE), gpu_uuids=("GPU-0",), seen_holding=before
    )

    written, actions = decide(make_session(status=status), bind=make_bind(seen_holding=now))

    assert written.seen_holding is (before or now)
    assert actions == ((RecordStatus(),) if now and not before else ())


def test_human_override_does_not_end_a_session_that_nobody_asked_to_end() -> None:
    """Giving up on evidence is no request; the Pod and its memory live on."""
    session = make_session(Phase.ACTIVE, metadata=make_metadata(override_by="ada"))

    status, actions = decide(session)

    assert (status.phase, actions) == (Phase.ACTIVE, ())


@pytest.mark.parametrize("phase", PHASES, ids=str)
@pytest.mark.parametrize("moment", [NOW, NOW + timedelta(days=400)], ids=["now", "much later"])
def test_step_gives_the_same_answer_to_the_same_question(
    phase: Phase | None, moment: datetime
) -> None:
    """A crash between two effects only means that the same decision is taken again."""
    session = make_session(phase, metadata=make_metadata(deleted=True))

    assert decide(session, now=moment) == decide(session, now=moment)


def test_destroyed_keeps_both_halves_of_the_evidence() -> None:
    """GPUReleased and StateCleared stay True for as long as the object can be read."""
    status, _ = decide(make_session(Phase.DESTROYED), pod=UNSEEN, node=UNSEEN)

    assert holds(status, ConditionType.GPU_RELEASED)
    assert holds(status, ConditionType.STATE_CLEARED)


def test_lost_finalizer_of_an_active_session_is_put_back() -> None:
    """Whoever took it off, a bound Session must not vanish without its release."""
    bare = make_session(Phase.ACTIVE, metadata=make_metadata(held=False))

    assert decide(bare)[1] == (Hold(None),)


def test_node_uid_that_was_not_seen_at_the_bind_is_noted_later() -> None:
    """NodeGone by another UID rests on it."""
    status = msgspec.structs.replace(make_status(Phase.ACTIVE), node_uid=None)

    noted, actions = decide(make_session(status=status))

    assert noted.node_uid == make_node().metadata.uid
    assert actions == (RecordStatus(),)
