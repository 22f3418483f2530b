"""A controller among real neighbours, on a namespace of the module."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support import assets
from tests.support.cluster import Cluster, kube_client
from tests.support.control_plane import ControlPlane
from tests.support.controller_rig import ControllerRig, Surroundings
from tests.support.redis_server import RedisServer
from tests.support.session_api import create_namespace, remove_namespace

PRODUCTS = sorted(assets.redis_servers())


@pytest.fixture(scope="session")
def controller_kubeconfig(
    session_api: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Give the controller's own login, so that its RBAC is tested along."""
    folder = tmp_path_factory.mktemp("accounts")
    account = ("gpusession-system", "gpusession-controller")
    return session_api.kubeconfig_for_service_account(*account, folder)


@pytest.fixture(scope="module")
def namespace(session_api: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give a namespace for the module."""
    name = "controller-" + request.path.stem.replace("_", "-")
    create_namespace(session_api, name)
    yield name
    remove_namespace(session_api, name)


@pytest.fixture
async def cluster(session_api: ControlPlane, namespace: str) -> AsyncIterator[Cluster]:
    """Give the namespace in the hands of an admin."""
    async with kube_client(session_api.admin_kubeconfig) as admin:
        yield Cluster(admin, namespace)


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
