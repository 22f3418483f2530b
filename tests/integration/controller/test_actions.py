"""Each action performed on a real apiserver, a real Redis and an agent that a test directs."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.support.builders import make_bind, make_metadata, make_release, make_session, make_status
from tests.support.cluster import Cluster
from tests.support.controller_rig import NODE, ControllerRig

from gpusession.api.cluster import OwnerReference
from gpusession.api.release import Mode, Verdict
from gpusession.api.session import FINALIZER, Phase, Reason, Session, SessionStatus, StateKeys
from gpusession.controller.actions import Effect, Round
from gpusession.controller.observer import Findings
from gpusession.errors import Refused, Stale
from gpusession.rules.actions import (
    Announce,
    Bind,
    ClearState,
    DeletePod,
    DeleteSession,
    DropFinalizer,
    ForgetRecord,
    Hold,
    Intent,
    OpenRecord,
    RecordStatus,
    Release,
    ScaleOwner,
    TellWouldEnd,
)
from gpusession.rules.observation import Claimed, Outcome, Owner, Unreachable

INTENT = Intent(NODE, "p-1")
FOREIGN = "a.example/one"


async def perform(
    rig: ControllerRig,
    action: Effect,
    session: Session,
    *,
    after: SessionStatus | None = None,
    findings: Findings | None = None,
) -> Findings:
    """Perform one action on a Session and give what it brought to light."""
    now = Round(session, after or session.status, findings or Findings())
    await rig.performer.perform(action, now)
    return now.findings


async def test_hold_is_known_at_once(cluster: Cluster, rig: ControllerRig) -> None:
    """The answer to our write is in the cache before the watch tells of it."""
    session = await cluster.session("hold")

    findings = await perform(
        rig, Hold(INTENT), session, findings=Findings(release=make_release(Verdict.NOT_BOUND))
    )

    known = rig.sessions.get(session.metadata.uid)
    assert known is not None
    assert known == await cluster.read_session("hold")
    assert known.metadata.bind_intent == f"{NODE}/p-1"
    assert findings.release is None  # it spoke of the intent before this one


async def test_bind_names_session_and_pod_and_nothing_else(rig: ControllerRig) -> None:
    """The agent is told which Session and which Pod; the rest it finds out itself."""
    rig.agent.bind_report = make_bind()
    session = make_session(Phase.PENDING)

    findings = await perform(rig, Bind(INTENT), session, findings=Findings(rebind_due=True))

    assert msgspec.to_builtins(rig.agent.binds[0]) == {
        "sessionUID": "s-1",
        "sessionNamespace": "lab",
        "sessionName": "chat",
        "podName": "chat",
        "podUID": "p-1",
        "leaderEpoch": rig.leader.epoch,
    }
    assert (findings.bind, findings.rebind_due) == (make_bind(), False)


async def test_release_orders_what_the_session_asks_for(rig: ControllerRig) -> None:
    """Mode, grace, devices and Redis keys come from rules, spec and status."""
    rig.agent.release_report = make_release()
    state = StateKeys(keys=("lab:chat",))
    session = make_session(Phase.ACTIVE, state=state, termination_grace_period_seconds=1)

    findings = await perform(rig, Release(INTENT, Mode.VERIFY), session)

    (order,) = rig.agent.releases
    assert (order.mode, order.pod_uid, order.state) == (Mode.VERIFY, "p-1", state)
    assert order.termination_grace_period_seconds == 1
    assert findings.release == make_release()


@pytest.mark.parametrize("seen", [False, True])
async def test_release_tells_devices_and_whether_they_were_seen_held(
    rig: ControllerRig, *, seen: bool
) -> None:
    """An agent that lost its ledger has nothing else to tell Freed from NothingHeld by."""
    rig.agent.release_report = make_release()
    known = {"gpu_uuids": ("GPU-0",), "seen_holding": seen}
    status = msgspec.structs.replace(make_status(Phase.ACTIVE), **known)

    await perform(rig, Release(INTENT, Mode.END), make_session(status=status))

    (order,) = rig.agent.releases
    assert (order.gpu_uuids, order.seen_holding) == (("GPU-0",), seen)


@pytest.mark.parametrize("node", [NODE, "elsewhere"], ids=["not-ready", "absent"])
@pytest.mark.parametrize("asked", [Bind, lambda intent: Release(intent, Mode.END)])
async def test_agent_without_an_answer_is_a_finding(
    rig: ControllerRig, node: str, asked: Any
) -> None:
    """An agent that is absent or not ready stops nothing: the rules decide what it means."""
    action = asked(Intent(node, "p-1"))

    findings = await perform(rig, action, make_session(Phase.ACTIVE))

    found = findings.bind if isinstance(action, Bind) else findings.release
    assert isinstance(found, Unreachable)
    assert node in found.message


async def test_status_is_known_at_once(cluster: Cluster, rig: ControllerRig) -> None:
    """The written status is in the cache, so that the next decision builds on it."""
    session = await cluster.session("status")

    await perform(rig, RecordStatus(), session, after=make_status(Phase.ACTIVE))

    known = rig.sessions.get(session.metadata.uid)
    assert known is not None
    assert known == await cluster.read_session("status")
    assert msgspec.structs.replace(known.status, leader_epoch=0) == make_status(Phase.ACTIVE)
    assert known.status.leader_epoch == rig.leader.epoch > 0


async def test_a_claim_counts_once(cluster: Cluster, rig: ControllerRig) -> None:
    """Else a client that returns in the same round is ended again, and again."""
    session = await cluster.session("claimed")
    won = Findings(claimed=Claimed(Reason.IDLE, Outcome.WON))

    findings = await perform(
        rig, RecordStatus(), session, after=make_status(Phase.ACTIVE), findings=won
    )

    assert findings.claimed is None


async def test_an_agent_that_knows_a_later_leader_gets_a_higher_epoch(rig: ControllerRig) -> None:
    """The Lease was made anew: whoever holds it counts on from what the agents have seen."""
    rig.agent.latest_epoch = rig.leader.epoch + 4
    session = make_session(Phase.PENDING)

    refused = await perform(rig, Bind(INTENT), session)
    rig.agent.bind_report = make_bind()
    bound = await perform(rig, Bind(INTENT), session)

    assert isinstance(refused.bind, Unreachable)
    assert rig.leader.epoch == rig.agent.latest_epoch + 1
    assert bound.bind == make_bind()


async def test_refused_status_is_not_taken_for_written(
    cluster: Cluster, rig: ControllerRig
) -> None:
    """What the apiserver refuses reaches the worker and never the cache."""
    session = await cluster.session("no-evidence")
    rig.sessions.keep(session)

    with pytest.raises(Refused):
        await perform(rig, RecordStatus(), session, after=SessionStatus(phase=Phase.DESTROYED))

    assert rig.sessions.get(session.metadata.uid) == session


async def test_record_is_opened_and_forgotten(rig: ControllerRig) -> None:
    """The control record comes with Active and goes with the end."""
    session = make_session(Phase.PENDING)

    await perform(rig, OpenRecord(), session, after=make_status(Phase.ACTIVE))
    opened = await rig.store.read("s-1")
    await perform(rig, ForgetRecord(), session)

    assert opened is not None
    assert (opened.record.node, await rig.store.read("s-1")) == ("node-a", None)


async def test_last_finalizer_buries_the_session(cluster: Cluster, rig: ControllerRig) -> None:
    """A deleted Session is forgotten with our write, and late events do not bring it back."""
    await cluster.session("last", finalizers=(FINALIZER,))
    await cluster.delete("sessions", "last")
    session = await cluster.read_session("last")
    assert session is not None

    await perform(rig, DropFinalizer(), session)
    rig.watch_says(session)

    assert session.metadata.uid not in rig.sessions


@pytest.mark.parametrize("is_deleted", [True, False], ids=["held-by-others", "not-deleted"])
async def test_session_that_stays_is_kept(
    cluster: Cluster, rig: ControllerRig, *, is_deleted: bool
) -> None:
    """Others' finalizers, or a Session that was closed and not deleted: it is still there."""
    name = f"stays-{is_deleted}".lower()
    foreign = (FOREIGN,) if is_deleted else ()
    await cluster.session(name, finalizers=(*foreign, FINALIZER))
    if is_deleted:
        await cluster.delete("sessions", name)
    session = await cluster.read_session(name)
    assert session is not None

    await perform(rig, DropFinalizer(), session)

    known = rig.sessions.get(session.metadata.uid)
    assert known is not None
    assert known.metadata.finalizers == foreign


async def test_session_is_deleted_after_its_time(cluster: Cluster, rig: ControllerRig) -> None:
    """TtlSecondsAfterDestroyed ends with a deletion of ours."""
    session = await cluster.session("ttl")

    await perform(rig, DeleteSession(), session)

    assert await cluster.read("sessions", "ttl") is None


async def in_namespace(cluster: Cluster, phase: Phase = Phase.ACTIVE, **spec: Any) -> Session:
    """Give a Session of the module's namespace that is nowhere but here."""
    return make_session(phase, metadata=make_metadata(namespace=cluster.namespace), **spec)


async def test_pod_is_deleted_by_uid(cluster: Cluster, rig: ControllerRig) -> None:
    """The Pod of this uid is terminating afterwards."""
    pod = await cluster.pod("doomed")
    action = DeletePod("doomed", pod.metadata.uid, timedelta(seconds=1))

    await perform(rig, action, await in_namespace(cluster))

    assert "deletionTimestamp" in (await cluster.read("pods", "doomed") or {})["metadata"]


async def test_refused_pod_deletion_stops_no_release(cluster: Cluster, rig: ControllerRig) -> None:
    """Consent that was withdrawn after our look spares the Pod, and the verification goes on."""
    pod = await cluster.pod("spared", use=None)
    action = DeletePod("spared", pod.metadata.uid, timedelta(seconds=1))

    await perform(rig, action, await in_namespace(cluster))

    assert "deletionTimestamp" not in (await cluster.read("pods", "spared") or {})["metadata"]


async def test_state_is_cleared_from_here(rig: ControllerRig) -> None:
    """With its node gone the Session's keys are removed by the controller, and only those."""
    for key in ("lab:chat", "lab:chat:1", "lab:other"):
        await rig.redis.call("SET", key, "x")
    state = StateKeys(keys=("lab:chat",), key_prefixes=("lab:chat:",))

    findings = await perform(rig, ClearState(), make_session(Phase.ACTIVE, state=state))

    assert findings.cleared is not None
    assert (findings.cleared.cleared, findings.cleared.keys_cleared) == (True, 2)
    assert await rig.redis.call("EXISTS", "lab:other") == 1


@pytest.mark.parametrize(
    ("state", "reason"),
    [(StateKeys(keys=("lab:chat",)), Reason.REDIS_UNAVAILABLE), (None, Reason.NOTHING_TO_CLEAR)],
    ids=["with-state", "without"],
)
async def test_without_a_state_redis_nothing_is_claimed(
    rig: ControllerRig, state: StateKeys | None, reason: Reason
) -> None:
    """Keys that nobody can remove are not called cleared; no keys need nobody."""
    now = Round(make_session(Phase.ACTIVE, state=state), make_status(), Findings())

    await rig.make_performer(None).perform(ClearState(), now)

    assert now.findings.cleared is not None
    assert (now.findings.cleared.cleared, now.findings.cleared.reason) == (state is None, reason)


async def test_end_is_announced_with_its_evidence(cluster: Cluster, rig: ControllerRig) -> None:
    """Kubectl describe shows why the Session ended and how much memory came back."""
    session = await cluster.session("announced")
    session = msgspec.structs.replace(session, status=make_status(Phase.DESTROYED))

    await perform(rig, Announce(), session)

    (event,) = await cluster.events()
    assert event["message"] == (
        "Session ended (Deleted): Freed, 1073741824 bytes of GPU memory freed"
    )


async def owned(cluster: Cluster, name: str, *, replicas: int = 1, stale: bool = False) -> Owner:
    """Make an owner that its controller has nothing more to write about, and look at it."""
    made = await cluster.workload("ReplicaSet", name, replicas=replicas)
    reference = OwnerReference(
        api_version="apps/v1", kind="ReplicaSet", name=name, uid=made.metadata.uid, controller=True
    )
    version = await cluster.settled(name, replicas)
    return Owner(reference, "1" if stale else version, replicas)


async def test_scaled_owner_is_a_finding(cluster: Cluster, rig: ControllerRig) -> None:
    """The next decision knows that it was this round that took the replica."""
    session = await cluster.session("scaled")

    findings = await perform(rig, ScaleOwner(await owned(cluster, "scaled")), session)

    assert (findings.scaled, findings.unscaled) == (True, None)


async def test_refused_scaling_stops_nothing(cluster: Cluster, rig: ControllerRig) -> None:
    """Who may not scale says so in the condition, and the release goes on."""
    session = await cluster.session("refused")

    two = await owned(cluster, "refused", replicas=2)
    findings = await perform(rig, ScaleOwner(two), session)

    assert findings.unscaled is not None
    assert findings.unscaled.reason == Reason.OWNER_SCALE_REFUSED
    assert not findings.scaled


async def test_stale_scaling_is_tried_again(cluster: Cluster, rig: ControllerRig) -> None:
    """An owner that has moved on is looked at again before its Pod is deleted."""
    session = await cluster.session("stale")

    with pytest.raises(Stale):
        await perform(rig, ScaleOwner(await owned(cluster, "stale", stale=True)), session)


async def test_last_try_at_scaling_stops_nothing(cluster: Cluster, rig: ControllerRig) -> None:
    """GPU memory is not held for ever by an owner that never stands still."""
    session = await cluster.session("last")

    moving = await owned(cluster, "last", stale=True)
    findings = await perform(rig, ScaleOwner(moving, last_try=True), session)

    assert (findings.scaled, findings.unscaled) == (False, None)


async def test_what_observe_mode_has_told_is_forgotten_with_the_session(
    rig: ControllerRig,
) -> None:
    """Its memory is no larger than the cache of Sessions."""
    for index in range(9):
        session = make_session(Phase.ACTIVE, metadata=make_metadata(uid=f"s-{index}"))
        rig.sessions.keep(session)
        action = TellWouldEnd(Reason.IDLE)
        await rig.performer.perform(action, Round(session, session.status, Findings()))
        rig.sessions.drop(session.metadata.uid)

    assert len(rig.performer._told) == 1
