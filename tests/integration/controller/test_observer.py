"""Looking at a situation through a real apiserver, with caches that may be behind."""

from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest
from tests.support.builders import make_bind, make_release, make_status
from tests.support.cluster import Cluster, paused, running
from tests.support.control_plane import ControlPlane
from tests.support.controller_rig import ControllerRig, Surroundings

from gpusession.api.cluster import Pod
from gpusession.api.session import OnRelease, Phase, PodRef, Reason, Session
from gpusession.controller.observer import Findings
from gpusession.rules.observation import ABSENT, UNSEEN, Owner, Unscaled

FRESH = Findings


@pytest.fixture
async def hasty(surroundings: Surroundings) -> AsyncIterator[ControllerRig]:
    """Give a controller that waits for the apiserver no longer than a moment."""
    async with ControllerRig(replace(surroundings, api_timeout=0.3)) as rig:
        yield rig


async def filled(rig: ControllerRig) -> ControllerRig:
    """Fill the caches of Pods and Nodes, and let them fall behind from here."""
    async with running(rig.pods.run(), rig.nodes.run()):
        await rig.pods.synced.wait()
        await rig.nodes.synced.wait()
    return rig


def bound(session: Session, *, pod_uid: str, node: str = "nowhere", node_uid: str = "") -> Session:
    """Give the Session as it is once Active on this Pod."""
    status = msgspec.structs.replace(
        session.status,
        phase=Phase.ACTIVE,
        node_name=node,
        node_uid=node_uid or None,
        pod_uid=pod_uid,
    )
    return msgspec.structs.replace(session, status=status)


async def test_cached_pod_is_believed(
    session_api: ControlPlane, cluster: Cluster, hasty: ControllerRig
) -> None:
    """Presence costs no request: a Pod that the watch knows is seen with the apiserver away."""
    pod = await cluster.pod("cached")
    session = await cluster.session("cached")
    await filled(hasty)

    with paused(session_api):
        seen = await hasty.observer.look(session, FRESH())

    assert seen.pod == pod


async def test_pod_unknown_to_the_cache_is_asked_for(cluster: Cluster, rig: ControllerRig) -> None:
    """A Pod that the watch has not brought yet is found all the same."""
    pod = await cluster.pod("asked")
    session = await cluster.session("asked")

    seen = await rig.observer.look(session, FRESH())

    assert seen.pod == pod


async def test_absence_is_the_apiservers_own_word(cluster: Cluster, rig: ControllerRig) -> None:
    """Only a not-found of the apiserver makes a Pod absent."""
    session = await cluster.session("no-pod")

    seen = await rig.observer.look(session, FRESH())

    assert seen.pod is ABSENT


async def test_silent_apiserver_makes_nothing_absent(
    session_api: ControlPlane, cluster: Cluster, hasty: ControllerRig
) -> None:
    """With an empty cache and no answer, Pod and Node are unseen: nobody dies of an outage."""
    session = bound(await cluster.session("outage"), pod_uid="p-1")

    with paused(session_api):
        seen = await hasty.observer.look(session, FRESH())

    assert (seen.pod, seen.node) == (UNSEEN, UNSEEN)


async def test_cached_pod_of_another_uid_is_read_again(
    cluster: Cluster, rig: ControllerRig
) -> None:
    """A cache that still shows the Pod before ours does not end ours as replaced."""
    await cluster.pod("behind")
    await filled(rig)
    await cluster.remove_pod("behind")
    ours = await cluster.pod("behind")
    session = bound(await cluster.session("behind"), pod_uid=ours.metadata.uid)

    seen = await rig.observer.look(session, FRESH())

    assert seen.pod == ours


async def test_replaced_pod_is_seen_as_it_is(cluster: Cluster, rig: ControllerRig) -> None:
    """A Pod of the same name and another uid is what the apiserver shows."""
    ours = await cluster.pod("replaced")
    session = bound(await cluster.session("replaced"), pod_uid=ours.metadata.uid)
    await cluster.remove_pod("replaced")
    other = await cluster.pod("replaced")
    await filled(rig)

    seen = await rig.observer.look(session, FRESH())

    assert seen.pod == other


async def test_node_is_cached_or_asked_for(cluster: Cluster, rig: ControllerRig) -> None:
    """The recorded Node is found with and without the cache."""
    node = await cluster.node("observed")
    session = bound(await cluster.session("observed"), pod_uid="p-1", node="observed")

    before = await rig.observer.look(session, FRESH())
    after = await (await filled(rig)).observer.look(session, FRESH())

    assert [s.node.metadata.uid for s in (before, after)] == [node.metadata.uid] * 2  # type: ignore[union-attr]


async def test_deleted_node_is_absent(cluster: Cluster, rig: ControllerRig) -> None:
    """The apiserver says that there is no such Node."""
    session = bound(await cluster.session("no-node"), pod_uid="p-1", node="never-was")

    seen = await rig.observer.look(session, FRESH())

    assert seen.node is ABSENT


async def test_replaced_node_is_read_again(cluster: Cluster, rig: ControllerRig) -> None:
    """A cached Node of another uid may be the one before or after ours: the apiserver decides."""
    await cluster.node("replaced-node")
    await filled(rig)
    await cluster.delete("nodes", "replaced-node")
    new = await cluster.node("replaced-node")
    status = {"node": "replaced-node", "node_uid": new.metadata.uid}
    session = bound(await cluster.session("replaced-node"), pod_uid="p-1", **status)

    seen = await rig.observer.look(session, FRESH())

    assert seen.node.metadata.uid == new.metadata.uid  # type: ignore[union-attr]


async def test_destroyed_session_asks_nothing(
    session_api: ControlPlane, cluster: Cluster, hasty: ControllerRig
) -> None:
    """What is over needs no look at Pod or Node."""
    session = await cluster.session("over")
    status = msgspec.structs.replace(session.status, phase=Phase.DESTROYED)

    with paused(session_api):
        seen = await hasty.observer.look(msgspec.structs.replace(session, status=status), FRESH())

    assert (seen.pod, seen.node) == (UNSEEN, UNSEEN)


async def test_findings_are_part_of_the_situation(cluster: Cluster, rig: ControllerRig) -> None:
    """What calls brought to light in this round is seen by the next decision."""
    session = await cluster.session("findings")
    findings = Findings(bind=make_bind(), release=make_release(), rebind_due=True)

    seen = await rig.observer.look(session, findings)

    assert (seen.bind, seen.release, seen.rebind_due) == (findings.bind, findings.release, True)


async def test_session_is_read_again_by_uid(cluster: Cluster, rig: ControllerRig) -> None:
    """This very Session is read from etcd; a namesake is as good as gone."""
    session = await cluster.session("again")
    namesake = msgspec.structs.replace(session.metadata, uid="s-0")
    missing = msgspec.structs.replace(session.metadata, name="missing")

    found = [await rig.observer.session(m) for m in (session.metadata, namesake, missing)]

    assert found == [session, None, None]


def asking(session: Session, pod: Pod, phase: Phase) -> Session:
    """Give the Session in a phase, bound to this Pod, with an owner to be scaled."""
    state = make_status(phase)
    state = msgspec.structs.replace(state, pod_uid=pod.metadata.uid)
    ref = PodRef(name=pod.metadata.name, on_release=OnRelease.SCALE_OWNER)
    spec = msgspec.structs.replace(session.spec, pod_refs=(ref,))
    return msgspec.structs.replace(session, status=state, spec=spec)


async def test_owner_is_looked_at_when_the_end_has_begun(
    cluster: Cluster, rig: ControllerRig
) -> None:
    """A living Session costs no look at owners."""
    await cluster.workload("ReplicaSet", "owned")
    (pod,) = await cluster.pods_of("owned")
    session = await cluster.session("owned")

    phases = (Phase.ACTIVE, Phase.PENDING_DESTROY, Phase.DESTROYED)
    seen = [await rig.observer.look(asking(session, pod, p), FRESH()) for p in phases]

    active, ending, over = (each.owner for each in seen)
    assert isinstance(ending, Owner)
    assert (active, over) == (UNSEEN, UNSEEN)


async def test_owner_is_still_seen_when_its_pod_is_gone(
    cluster: Cluster, rig: ControllerRig
) -> None:
    """Within one round: whoever scales it up again while the Pod goes is noticed."""
    await cluster.workload("ReplicaSet", "still")
    (pod,) = await cluster.pods_of("still")
    session, findings = await cluster.session("still"), FRESH()
    ending = asking(session, pod, Phase.PENDING_DESTROY)
    await rig.observer.look(ending, findings)
    await cluster.remove_pod(pod.metadata.name)

    findings.scaled = True
    seen = await rig.observer.look(ending, findings)

    assert isinstance(seen.owner, Owner)
    assert (seen.pod, seen.scaled) == (ABSENT, True)


async def test_refused_scaling_is_not_looked_past(cluster: Cluster, rig: ControllerRig) -> None:
    """What the apiserver said to the write outweighs what the owner looks like."""
    await cluster.workload("ReplicaSet", "no")
    (pod,) = await cluster.pods_of("no")
    session = asking(await cluster.session("no"), pod, Phase.PENDING_DESTROY)
    refusal = Unscaled(Reason.OWNER_SCALE_REFUSED, "no")

    seen = await rig.observer.look(session, Findings(unscaled=refusal))

    assert seen.owner == refusal
