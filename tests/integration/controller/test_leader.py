"""The Lease and the epoch, against a real apiserver."""

import asyncio
from datetime import timedelta

import pytest
from tests.support.cluster import Cluster
from tests.support.controller_rig import PATIENT, utc_now

from gpusession.api.cluster import LeaseSpec
from gpusession.controller.leader import Leader, Periods
from gpusession.errors import Deposed
from gpusession.kube.leases import LeaseClient

SHORT = Periods(
    lease=timedelta(milliseconds=600),
    renew=timedelta(milliseconds=400),
    retry=timedelta(milliseconds=50),
)


@pytest.fixture
def leases(cluster: Cluster, request: pytest.FixtureRequest) -> LeaseClient:
    """Give a Lease of the test's own."""
    name = request.node.name.replace("_", "-")[:60].strip("-")
    return LeaseClient(cluster.admin, namespace=cluster.namespace, name=name)


def candidate(leases: LeaseClient, identity: str, periods: Periods = PATIENT) -> Leader:
    """Give one that wants to lead."""
    return Leader(leases, identity=identity, periods=periods, clock=utc_now)


async def test_the_first_reign_is_number_one(leases: LeaseClient) -> None:
    """A Lease that did not exist is made, and its holder may act."""
    leader = candidate(leases, "a")

    await leader.acquire()
    leader.check()

    lease = await leases.read()
    assert lease is not None
    assert (leader.epoch, lease.spec.holder_identity) == (1, "a")


async def test_a_living_leader_is_waited_for(leases: LeaseClient) -> None:
    """While it renews, nobody else leads, however long that takes."""
    first, second = candidate(leases, "a", SHORT), candidate(leases, "b", SHORT)
    await first.acquire()
    keeping = asyncio.create_task(first.keep())

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(second.acquire(), 1.5)

    keeping.cancel()
    assert second.epoch == 0
    with pytest.raises(Deposed):
        second.check()


async def test_a_silent_leader_is_followed_by_the_next_epoch(leases: LeaseClient) -> None:
    """The successor's number is higher, and the old leader knows by its own clock."""
    first, second = candidate(leases, "a", SHORT), candidate(leases, "b", SHORT)
    await first.acquire()

    await second.acquire()

    assert (first.epoch, second.epoch) == (1, 2)
    with pytest.raises(Deposed):
        first.check()


async def test_a_deposed_leader_that_wakes_up_ends(leases: LeaseClient) -> None:
    """Stopped for longer than its renewal, it finds out before it renews."""
    first = candidate(leases, "a", SHORT)
    await first.acquire()
    await candidate(leases, "b", SHORT).acquire()

    with pytest.raises(Deposed):
        await first.keep()


async def test_a_lease_taken_by_another_is_not_renewed(leases: LeaseClient) -> None:
    """A renewal of a version that has moved is refused by the apiserver."""
    first = candidate(leases, "a")
    await first.acquire()
    seen = await leases.read()
    assert seen is not None
    await leases.replace(seen, LeaseSpec(holder_identity="b", lease_duration_seconds=9))

    with pytest.raises(Deposed):
        await first.raise_epoch(5)


async def test_an_own_earlier_life_is_followed_at_once(leases: LeaseClient) -> None:
    """A restarted container has its Pod's name: it waits for nobody, and counts on."""
    await candidate(leases, "a").acquire()
    reborn = candidate(leases, "a")

    await asyncio.wait_for(reborn.acquire(), 5)

    assert reborn.epoch == 2


async def test_a_resigned_lease_is_free_at_once(leases: LeaseClient) -> None:
    """A rolling update does not wait for the Lease to run out."""
    first, second = candidate(leases, "a"), candidate(leases, "b")
    await first.acquire()
    await first.resign()

    await asyncio.wait_for(second.acquire(), 5)

    assert second.epoch == 2
    with pytest.raises(Deposed):
        first.check()


async def test_an_epoch_can_be_raised_above_what_others_have_seen(leases: LeaseClient) -> None:
    """A Lease that was deleted starts over; its count is brought up to the fences."""
    leader = candidate(leases, "a")
    await leader.acquire()

    await leader.raise_epoch(7)
    await leader.raise_epoch(3)

    lease = await leases.read()
    assert lease is not None
    assert (leader.epoch, lease.spec.lease_transitions) == (7, 6)
