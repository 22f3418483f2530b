"""One Lease, as a real apiserver keeps it."""

import pytest
from tests.support.cluster import Cluster

from gpusession.api.cluster import LeaseSpec
from gpusession.errors import Stale
from gpusession.kube.leases import LeaseClient


def lease_of(cluster: Cluster, name: str) -> LeaseClient:
    """Give a Lease in the module's namespace."""
    return LeaseClient(cluster.admin, namespace=cluster.namespace, name=name)


async def test_a_lease_that_does_not_exist_is_none(cluster: Cluster) -> None:
    """Nothing is not an error: it is there to be made."""
    assert await lease_of(cluster, "nowhere").read() is None


async def test_of_two_that_make_it_one_is_stale(cluster: Cluster) -> None:
    """Two candidates at the same moment do not both win."""
    leases = lease_of(cluster, "twice")
    await leases.create(LeaseSpec(holder_identity="a", lease_duration_seconds=9))

    with pytest.raises(Stale):
        await leases.create(LeaseSpec(holder_identity="b", lease_duration_seconds=9))


async def test_a_version_that_has_moved_is_not_replaced(cluster: Cluster) -> None:
    """Who writes what he saw earlier is told to look again."""
    leases = lease_of(cluster, "moved")
    seen = await leases.create(LeaseSpec(holder_identity="a", lease_duration_seconds=9))
    await leases.replace(seen, LeaseSpec(holder_identity="b", lease_duration_seconds=9))

    with pytest.raises(Stale):
        await leases.replace(seen, LeaseSpec(holder_identity="c", lease_duration_seconds=9))
