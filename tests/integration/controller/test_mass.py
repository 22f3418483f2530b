"""Very many clients fall silent at once: nobody ends, everybody is told, and it passes.

MASS_SIZE says how many; the figures hold for any.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.support.cluster import Cluster, running
from tests.support.controller_rig import ControllerRig, Surroundings
from tests.support.mass_rig import SHORT, SIZE, Mass

from gpusession.metrics import EXPIRY_BRAKE
from gpusession.rules.brake import Level, ScopeKind

pytestmark = pytest.mark.timeout(60 + SIZE // 4)

WORKERS = 8
TOLD_PER_SECOND = 12 * 4
"""Twelve with each sweep."""


@pytest.fixture
async def mass(cluster: Cluster, surroundings: Surroundings) -> AsyncIterator[Mass]:
    """Give very many Sessions, of which nobody beats yet."""
    async with ControllerRig(surroundings, **SHORT) as rig:
        mass = Mass(cluster, rig)
        await mass.create()
        yield mass
        await mass.remove()


@asynccontextmanager
async def at_work(mass: Mass) -> AsyncIterator[None]:
    """Run the controller's side of liveness, workers and a gateway."""
    rig = mass.rig
    workers = [rig.worker.run() for _ in range(WORKERS)]
    async with running(mass.run(), *workers, *(part() for part in rig.liveness.tasks)):
        yield


async def seconds_until(predicate: Callable[[], object]) -> float:
    """Wait for something that takes a while with so many."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(30 + SIZE / 10):
        while not predicate():
            await asyncio.sleep(0.1)
    return loop.time() - began


def brake() -> float:
    """Read the brake of the cluster off the metric."""
    return EXPIRY_BRAKE.labels(ScopeKind.CLUSTER)._value.get()


async def test_silence_of_all_ends_nobody_and_passes_when_they_return(mass: Mass) -> None:
    """Each is told that it is held, so many a second, and that it is no longer."""
    async with at_work(mass):
        await seconds_until(lambda: mass.told)
        took = await seconds_until(lambda: mass.told == SIZE)
        assert took > 0.8 * SIZE / TOLD_PER_SECOND - 1
        assert (mass.ended, brake()) == (set(), Level.FULL)

        mass.beating.update(mass.uids)
        await seconds_until(lambda: not mass.told and brake() == Level.NORMAL)

    assert mass.ended == set()


async def test_twenty_silent_ones_among_many_end_and_nobody_else(mass: Mass) -> None:
    """They are no crowd."""
    silent = set(mass.uids[:20])
    mass.beating.update(set(mass.uids) - silent)

    async with at_work(mass):
        await seconds_until(lambda: mass.ended == silent)
        await asyncio.sleep(5)

    assert mass.ended == silent
