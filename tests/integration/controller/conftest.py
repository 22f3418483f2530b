"""A controller among real neighbours, on a namespace of the module."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support import assets
from tests.support.control_plane import ControlPlane
from tests.support.controller_rig import ControllerRig, Surroundings
from tests.support.redis_server import RedisServer

PRODUCTS = sorted(assets.redis_servers())


@pytest.fixture
def surroundings(
    session_api: ControlPlane, controller_kubeconfig: Path, redis_servers: dict[str, RedisServer]
) -> Surroundings:
    """Give the shared servers; one Redis product is enough here, the store tests take all."""
    return Surroundings(session_api, controller_kubeconfig, redis_servers[PRODUCTS[0]].url)


@pytest.fixture
async def rig(surroundings: Surroundings) -> AsyncIterator[ControllerRig]:
    """Give a controller with the controller's rights."""
    async with ControllerRig(surroundings) as rig:
        yield rig


@pytest.fixture(params=PRODUCTS)
def own_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """Give a Redis that the test may stop and freeze."""
    with RedisServer(assets.redis_servers()[request.param], tmp_path) as running:
        yield running
