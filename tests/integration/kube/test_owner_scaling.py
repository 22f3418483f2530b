"""Scaling an owner down with the controller's own rights, as a real kube-apiserver takes it."""

import asyncio

import msgspec
import pytest
from tests.support.cluster import Cluster

from gpusession.api.cluster import ObjectMeta, OwnerReference, Workload
from gpusession.errors import Refused, Stale
from gpusession.kube.client import KubeClient
from gpusession.kube.reader import KubeReader
from gpusession.kube.writer import KubeWriter


@pytest.fixture
def writer(client: KubeClient) -> KubeWriter:
    """Give a writer with the controller's rights."""
    return KubeWriter(client)


async def wanted(cluster: Cluster, name: str) -> int:
    """Read how many Pods a ReplicaSet wants."""
    path = f"/apis/apps/v1/namespaces/{cluster.namespace}/replicasets/{name}"
    return msgspec.json.decode(await cluster.admin.get(path) or b"", type=Workload).spec.replicas


def reference(made: Workload, kind: str = "ReplicaSet") -> OwnerReference:
    """Refer to an owner as its Pod does."""
    name, uid = made.metadata.name, made.metadata.uid
    return OwnerReference(api_version="apps/v1", kind=kind, name=name, uid=uid, controller=True)


async def current(
    client: KubeClient, cluster: Cluster, owner: OwnerReference, *, pods: int = 1
) -> str:
    """Wait until an owner's controller has written its first status, and give the version."""
    await cluster.pods_of(owner.name, pods)
    async with asyncio.timeout(10):
        while True:
            found = await KubeReader(client).workload(cluster.namespace, owner)
            await asyncio.sleep(0.3)
            again = await KubeReader(client).workload(cluster.namespace, owner)
            if found is not None and found == again:
                return found.metadata.resource_version


@pytest.mark.parametrize("kind", ["Deployment", "ReplicaSet", "StatefulSet"])
async def test_scale_takes_the_only_replica(
    cluster: Cluster, client: KubeClient, writer: KubeWriter, kind: str
) -> None:
    """The owner's own controller removes the Pod then, and makes no other."""
    name = f"scaled-{kind}".lower()
    owner = reference(await cluster.workload(kind, name), kind)
    version = await current(client, cluster, owner)

    await writer.scale(cluster.namespace, owner, version=version, replicas=0)

    found = await KubeReader(client).workload(cluster.namespace, owner)
    assert found is not None
    assert found.spec.replicas == 0


@pytest.mark.parametrize("change", ["version", "uid"])
async def test_scale_of_what_has_changed_is_stale(
    cluster: Cluster, client: KubeClient, writer: KubeWriter, change: str
) -> None:
    """Whatever happened to the owner since our look, we look again before we write."""
    owner = reference(await cluster.workload("ReplicaSet", f"changed-{change}"))
    version = await current(client, cluster, owner)
    moved = {"version": "1"} if change == "version" else {"version": version}
    other = msgspec.structs.replace(owner, uid=owner.uid if change == "version" else "no")

    with pytest.raises(Stale):
        await writer.scale(cluster.namespace, other, replicas=0, **moved)

    assert await wanted(cluster, owner.name) == 1


async def test_scale_is_not_repeated_by_a_lost_answer(
    cluster: Cluster, client: KubeClient, writer: KubeWriter
) -> None:
    """The same write from the same look is taken once."""
    owner = reference(await cluster.workload("ReplicaSet", "lost-answer"))
    version = await current(client, cluster, owner)
    await writer.scale(cluster.namespace, owner, version=version, replicas=0)

    with pytest.raises(Stale):
        await writer.scale(cluster.namespace, owner, version=version, replicas=0)


async def test_scale_of_a_gone_owner_is_stale(cluster: Cluster, writer: KubeWriter) -> None:
    """A later look will find it absent."""
    made = Workload(metadata=ObjectMeta(name="never", uid="no"))

    with pytest.raises(Stale):
        await writer.scale(cluster.namespace, reference(made), version="1", replicas=0)


@pytest.mark.parametrize("replicas", [0, 3], ids=["two fewer", "one more"])
async def test_policy_grants_the_controller_one_replica(
    cluster: Cluster, client: KubeClient, writer: KubeWriter, replicas: int
) -> None:
    """Even a controller gone wrong cannot scale up, or take what is not its Session's."""
    owner = reference(await cluster.workload("ReplicaSet", f"guarded-{replicas}", replicas=2))
    version = await current(client, cluster, owner, pods=2)

    with pytest.raises(Refused, match="only take one replica away"):
        await writer.scale(cluster.namespace, owner, version=version, replicas=replicas)
