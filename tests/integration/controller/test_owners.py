"""Looking at the owner of a Pod through a real apiserver, with owners that make real Pods."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.support.builders import make_owner, make_pod
from tests.support.cluster import Cluster, kube_client, paused
from tests.support.control_plane import ControlPlane

from gpusession.api.cluster import OwnerReference, Pod
from gpusession.api.session import Reason
from gpusession.controller.owners import OwnerLook
from gpusession.kube.reader import KubeReader
from gpusession.rules.observation import ABSENT, UNSEEN, Owner, Unscaled


@pytest.fixture
async def owners(controller_kubeconfig: Path) -> AsyncIterator[OwnerLook]:
    """Give a look with the controller's rights that does not wait long."""
    async with kube_client(controller_kubeconfig, timeout=1.0) as client:
        yield OwnerLook(KubeReader(client))


@pytest.fixture
async def unprivileged(session_api: ControlPlane, tmp_path: Path) -> AsyncIterator[OwnerLook]:
    """Give a look with rights that do not reach owners: the agent's."""
    account = ("gpusession-agents", "gpusession-agent")
    kubeconfig = session_api.kubeconfig_for_service_account(*account, tmp_path)
    async with kube_client(kubeconfig) as client:
        yield OwnerLook(KubeReader(client))


async def seen(owners: OwnerLook, pod: Pod) -> Owner:
    """Look at an owner that must be scalable."""
    found = await owners.look(pod)
    assert isinstance(found, Owner)
    return found


def named(owner: Owner) -> str:
    """Give kind and name of an owner."""
    return f"{owner.reference.kind} {owner.reference.name}"


async def config_map(cluster: Cluster, name: str) -> dict[str, object]:
    """Create an object of a kind that cannot be scaled, and give the reference to it."""
    made = await cluster.admin.send(
        "POST",
        f"/api/v1/namespaces/{cluster.namespace}/configmaps",
        body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}},
    )
    uid = msgspec.json.decode(made)["metadata"]["uid"]
    words = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid}
    return words | {"controller": True}


async def test_owner_of_a_deployments_pod_is_the_deployment(
    cluster: Cluster, owners: OwnerLook
) -> None:
    """The ReplicaSet between is scaled by the Deployment, which would undo our write."""
    await cluster.workload("Deployment", "one")
    (pod,) = await cluster.pods_of("one")

    owner = await seen(owners, pod)

    assert (named(owner), owner.replicas, owner.spared, owner.others) == ("Deployment one", 1, 0, 0)
    assert owner.owned_by is None


async def test_second_replica_is_seen(cluster: Cluster, owners: OwnerLook) -> None:
    """How many are wanted comes from etcd."""
    await cluster.workload("ReplicaSet", "two", replicas=2)
    pod, _ = await cluster.pods_of("two", 2)

    owner = await seen(owners, pod)

    assert (named(owner), owner.replicas) == ("ReplicaSet two", 2)


async def test_pod_of_a_rolling_update_is_company(cluster: Cluster, owners: OwnerLook) -> None:
    """One replica may have two Pods for a while, and scaling to none would end both."""
    made = await cluster.workload("Deployment", "rolling")
    (old,) = await cluster.pods_of("rolling")
    path = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments/{made.metadata.name}"
    change = {"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}}
    await cluster.admin.send(
        "PATCH", path, body=change, content_type="application/merge-patch+json"
    )
    await cluster.pods_of("rolling", 2)

    owner = await seen(owners, old)

    assert (owner.replicas, owner.others) == (1, 1)


async def test_stateful_set_counts_from_its_first_ordinal(
    cluster: Cluster, owners: OwnerLook
) -> None:
    """Which of its Pods goes next is known by number alone."""
    extra = {"ordinals": {"start": 5}, "podManagementPolicy": "Parallel", "serviceName": "no"}
    await cluster.workload("StatefulSet", "ordered", replicas=2, **extra)
    first, last = await cluster.pods_of("ordered", 2)

    found = [await seen(owners, first), await seen(owners, last)]

    assert [(owner.replicas, owner.spared) for owner in found] == [(2, 0), (2, 1)]


async def test_replication_controller_has_a_scale_too(cluster: Cluster, owners: OwnerLook) -> None:
    """The oldest owner lies in another API group."""
    await cluster.workload("ReplicationController", "old")
    (pod,) = await cluster.pods_of("old")

    owner = await seen(owners, pod)

    assert (named(owner), owner.replicas, owner.others) == ("ReplicationController old", 1, 0)


async def test_owner_of_the_owner_is_seen(cluster: Cluster, owners: OwnerLook) -> None:
    """Whoever made the StatefulSet may put its replicas back."""
    above = await config_map(cluster, "notebook")
    await cluster.workload("StatefulSet", "notebook", serviceName="no", owners=[above])
    (pod,) = await cluster.pods_of("notebook")

    owner = await seen(owners, pod)

    assert owner.owned_by == msgspec.convert(above, OwnerReference)


async def test_replica_set_of_a_foreign_kind_is_not_scaled(
    cluster: Cluster, owners: OwnerLook
) -> None:
    """Its owner would scale it up again, and how to scale that is not known."""
    above = await config_map(cluster, "rollout")
    await cluster.workload("ReplicaSet", "rollout", owners=[above])
    (pod,) = await cluster.pods_of("rollout")

    found = await owners.look(pod)

    assert isinstance(found, Unscaled)
    assert found.reason == Reason.OWNER_NOT_SCALABLE
    assert "ConfigMap rollout" in found.message


async def test_job_is_not_scaled(owners: OwnerLook) -> None:
    """A Job has no scale: that needs no request."""
    found = await owners.look(make_pod(owner=make_owner("Job", api_version="batch/v1")))

    assert isinstance(found, Unscaled)


async def test_owner_of_another_uid_is_absent(cluster: Cluster, owners: OwnerLook) -> None:
    """A namesake of a deleted owner has nothing to do with the Pod."""
    await cluster.workload("ReplicaSet", "chat", replicas=0)
    pod = make_pod(owner=make_owner())
    here = msgspec.structs.replace(pod.metadata, namespace=cluster.namespace)

    assert await owners.look(msgspec.structs.replace(pod, metadata=here)) is ABSENT
    assert await owners.look(make_pod()) is ABSENT


async def test_missing_right_is_told(cluster: Cluster, unprivileged: OwnerLook) -> None:
    """A cluster whose admin took the right away still ends its Sessions."""
    await cluster.workload("Deployment", "forbidden")
    (pod,) = await cluster.pods_of("forbidden")

    found = await unprivileged.look(pod)

    assert isinstance(found, Unscaled)
    assert found.reason == Reason.OWNER_SCALE_REFUSED
    assert "forbidden" in found.message


async def test_silent_apiserver_makes_no_owner_absent(
    session_api: ControlPlane, owners: OwnerLook
) -> None:
    """Nobody could look."""
    with paused(session_api):
        found = await owners.look(make_pod(owner=make_owner()))

    assert found is UNSEEN
