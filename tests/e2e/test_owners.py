"""Pods that a real Deployment or StatefulSet makes, and what becomes of those at the end."""

import json
from typing import Any

import pytest
from tests.support.session_world import World

pytestmark = pytest.mark.timeout(120)

DEPLOYMENT = "Deployment"
STATEFUL_SET = "StatefulSet"


def _workload(world: World, kind: str, name: str, *arguments: str, replicas: int = 1) -> None:
    """Create a workload of Pods that consent, run on node-a and hold memory."""
    pod = world.pod(name, "--memory=1Gi", *arguments, restart="Always")
    labels = {"app": name}
    template = {
        "metadata": {"labels": pod["metadata"]["labels"] | labels},
        "spec": pod["spec"],
    }
    spec: dict[str, Any] = {
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "template": template,
    }
    if kind == STATEFUL_SET:
        spec |= {"serviceName": name, "podManagementPolicy": "Parallel"}
    metadata = {"name": name, "namespace": world.namespace}
    world.apply({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec})


def _pods(world: World, name: str) -> list[str]:
    """List the Pods of a workload that are not going."""
    listed = json.loads(world.kubectl("get", "pods", "-l", f"app={name}", "-o", "json"))
    kept = (pod["metadata"] for pod in listed["items"])
    return sorted(pod["name"] for pod in kept if "deletionTimestamp" not in pod)


def _replicas(world: World, kind: str, name: str) -> int:
    return int(world.kubectl("get", kind, name, "-o", "jsonpath={.spec.replicas}"))


def _start(
    world: World, name: str, *, on_release: str = "", number: int = 0, of: int = 1, **spec: Any
) -> str:
    """Bind a Session to one of a workload's Pods; returns the Pod's uid."""
    world.wait(lambda: len(_pods(world, name)) == of, f"the Pods of {name}")
    pod = _pods(world, name)[number]
    world.apply(world.session(name, pod=pod, on_release=on_release, **spec))
    return world.wait_phase(name, "Active")["podUID"]


@pytest.mark.parametrize("kind", [DEPLOYMENT, STATEFUL_SET])
def test_the_owner_is_scaled_and_no_pod_comes_back(world: World, kind: str) -> None:
    """Kubectl delete: the Deployment stands at 0, the GPU is free and stays so."""
    _workload(world, kind, "scaled")
    uid = _start(world, "scaled", on_release="ScaleOwner")
    born = world.processes(uid)
    assert born

    world.close("scaled")
    status = world.wait_phase("scaled", "Destroyed")

    assert status["release"]["verdict"] == "Freed"
    assert world.reason("scaled", "OwnerWillRecreate") == "OwnerScaled"
    assert _replicas(world, kind, "scaled") == 0
    world.wait(lambda: not world.kubectl("get", "pods", "-o", "name"), "no Pod to be left")
    assert not any(b.lives for b in born)
    assert len(world.writes()) <= 8, world.writes()


def test_an_owner_that_is_scaled_up_again_is_told_of(world: World) -> None:
    """GitOps puts the replica back in mid-release: the Session ends, and another Pod comes."""
    _workload(world, DEPLOYMENT, "synced", "--ignore-sigterm")
    _start(world, "synced", on_release="ScaleOwner", terminationGracePeriodSeconds=3)
    world.close("synced")
    world.wait(lambda: _replicas(world, DEPLOYMENT, "synced") == 0, "the Deployment at 0")

    world.kubectl("scale", "deployment", "synced", "--replicas=1")
    status = world.wait_phase("synced", "Destroyed")

    assert status["release"]["verdict"] == "Freed"
    assert world.reason("synced", "OwnerWillRecreate") == "OwnerScaledUp"


def test_the_last_of_a_stateful_set_goes_alone(world: World) -> None:
    """Two replicas: the Pod with the highest ordinal goes, the other one lives on."""
    _workload(world, STATEFUL_SET, "ordered", replicas=2)
    _start(world, "ordered", on_release="ScaleOwner", number=1, of=2)

    world.delete("ordered")
    world.wait_gone("ordered")

    assert _replicas(world, STATEFUL_SET, "ordered") == 1
    world.wait(lambda: _pods(world, "ordered") == ["ordered-0"], "the first Pod alone")


def test_a_living_session_keeps_its_pod_when_its_neighbour_ends(world: World) -> None:
    """Two replicas of a Deployment, two Sessions: nothing is scaled, and the condition says why."""
    _workload(world, DEPLOYMENT, "pair", replicas=2)
    _start(world, "pair", on_release="ScaleOwner", of=2)
    other = _pods(world, "pair")[1]
    world.apply(world.session("neighbour", pod=other))
    born = world.processes(world.wait_phase("neighbour", "Active")["podUID"])

    world.close("pair")
    world.wait_phase("pair", "Destroyed")

    assert world.reason("pair", "OwnerWillRecreate") == "OwnerHasOtherPods"
    assert _replicas(world, DEPLOYMENT, "pair") == 2
    assert world.status("neighbour")["phase"] == "Active"
    assert all(b.lives for b in born)


def test_deleting_an_owned_pod_is_warned_of_while_active(world: World) -> None:
    """DeletePod ends the Session on its evidence, and the user knew that a Pod would come back."""
    _workload(world, DEPLOYMENT, "warned")
    _start(world, "warned")
    gone = _pods(world, "warned")

    assert world.reason("warned", "OwnerWillRecreate") == "OwnedByReplicaSet"
    assert len(world.writes()) == 2, world.writes()

    world.close("warned")
    status = world.wait_phase("warned", "Destroyed")
    assert status["release"]["verdict"] == "Freed"
    assert world.reason("warned", "OwnerWillRecreate") == "OwnedByReplicaSet"
    world.wait(lambda: _pods(world, "warned") not in (gone, []), "the next Pod")


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
