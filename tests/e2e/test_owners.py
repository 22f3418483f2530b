"""Pods that a real Deployment or StatefulSet makes, and what becomes of those at the end."""

import pytest
from tests.support.owners_world import (
    DEPLOYMENT,
    STATEFUL_SET,
    pods_of,
    replicas_of,
    start_workload,
)
from tests.support.session_world import World

pytestmark = pytest.mark.timeout(120)


def _start(
    world: World, name: str, *, on_release: str = "", number: int = 0, of: int = 1, **spec: object
) -> str:
    """Bind a Session to one of a workload's Pods; returns the Pod's uid."""
    world.wait(lambda: len(pods_of(world, name)) == of, f"the Pods of {name}")
    pod = pods_of(world, name)[number]
    world.apply(world.session(name, pod=pod, on_release=on_release, **spec))
    return world.wait_phase(name, "Active")["podUID"]


@pytest.mark.parametrize("kind", [DEPLOYMENT, STATEFUL_SET])
def test_the_owner_is_scaled_and_no_pod_comes_back(world: World, kind: str) -> None:
    """Kubectl delete: the Deployment stands at 0, the GPU is free and stays so."""
    start_workload(world, kind, "scaled")
    uid = _start(world, "scaled", on_release="ScaleOwner")
    born = world.processes(uid)
    assert born

    world.close("scaled")
    status = world.wait_phase("scaled", "Destroyed")

    assert status["release"]["verdict"] == "Freed"
    assert world.reason("scaled", "OwnerWillRecreate") == "OwnerScaled"
    assert replicas_of(world, kind, "scaled") == 0
    world.wait(lambda: not world.kubectl("get", "pods", "-o", "name"), "no Pod to be left")
    assert not any(b.lives for b in born)
    assert len(world.writes()) <= 8, world.writes()


def test_an_owner_that_is_scaled_up_again_is_told_of(world: World) -> None:
    """GitOps puts the replica back in mid-release: the Session ends, and another Pod comes."""
    start_workload(world, DEPLOYMENT, "synced", "--ignore-sigterm")
    _start(world, "synced", on_release="ScaleOwner", terminationGracePeriodSeconds=3)
    world.close("synced")
    world.wait(lambda: replicas_of(world, DEPLOYMENT, "synced") == 0, "the Deployment at 0")

    world.kubectl("scale", "deployment", "synced", "--replicas=1")
    status = world.wait_phase("synced", "Destroyed")

    assert status["release"]["verdict"] == "Freed"
    assert world.reason("synced", "OwnerWillRecreate") == "OwnerScaledUp"


def test_the_last_of_a_stateful_set_goes_alone(world: World) -> None:
    """Two replicas: the Pod with the highest ordinal goes, the other one lives on."""
    start_workload(world, STATEFUL_SET, "ordered", replicas=2)
    _start(world, "ordered", on_release="ScaleOwner", number=1, of=2)

    world.delete("ordered")
    world.wait_gone("ordered")

    assert replicas_of(world, STATEFUL_SET, "ordered") == 1
    world.wait(lambda: pods_of(world, "ordered") == ["ordered-0"], "the first Pod alone")


def test_a_living_session_keeps_its_pod_when_its_neighbour_ends(world: World) -> None:
    """Two replicas of a Deployment, two Sessions: nothing is scaled, and the condition says why."""
    start_workload(world, DEPLOYMENT, "pair", replicas=2)
    _start(world, "pair", on_release="ScaleOwner", of=2)
    other = pods_of(world, "pair")[1]
    world.apply(world.session("neighbour", pod=other))
    born = world.processes(world.wait_phase("neighbour", "Active")["podUID"])

    world.close("pair")
    world.wait_phase("pair", "Destroyed")

    assert world.reason("pair", "OwnerWillRecreate") == "OwnerHasOtherPods"
    assert replicas_of(world, DEPLOYMENT, "pair") == 2
    assert world.status("neighbour")["phase"] == "Active"
    assert all(b.lives for b in born)


def test_deleting_an_owned_pod_is_warned_of_while_active(world: World) -> None:
    """DeletePod ends the Session on its evidence, and the user knew that a Pod would come back."""
    start_workload(world, DEPLOYMENT, "warned")
    _start(world, "warned")
    gone = pods_of(world, "warned")

    assert world.reason("warned", "OwnerWillRecreate") == "OwnedByReplicaSet"
    assert len(world.writes()) == 2, world.writes()

    world.close("warned")
    status = world.wait_phase("warned", "Destroyed")
    assert status["release"]["verdict"] == "Freed"
    assert world.reason("warned", "OwnerWillRecreate") == "OwnedByReplicaSet"
    world.wait(lambda: pods_of(world, "warned") not in (gone, []), "the next Pod")


def test_a_session_ends_where_nobody_may_scale(world: World) -> None:
    """A Job has no scale: the Session says so from the start and ends all the same."""
    pod = world.pod("job", "--memory=1Gi", labels={"gpusession.dev/use": "exclusive", "app": "job"})
    template = {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]}
    metadata = {"name": "job", "namespace": world.namespace}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}
    world.apply(job | {"spec": {"template": template}})
    _start(world, "job", on_release="ScaleOwner")
    assert world.reason("job", "OwnerWillRecreate") == "OwnerNotScalable"

    world.close("job")
    status = world.wait_phase("job", "Destroyed")

    assert status["release"]["verdict"] == "Freed"
    assert world.reason("job", "OwnerWillRecreate") == "OwnerNotScalable"
