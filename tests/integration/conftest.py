"""Real servers, started once for the whole run: the first test that asks for one pays."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support import assets
from tests.support.cluster import Cluster, kube_client
from tests.support.control_plane import ControlPlane
from tests.support.redis_server import RedisServer
from tests.support.session_api import create_namespace, install, remove_namespace


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """Give a Kubernetes control plane; a test makes a namespace of its own in it."""
    with ControlPlane() as plane:
        yield plane


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RedisServer]]:
    """Give one running server of each product that this machine has: "redis", "valkey"."""
    with ExitStack() as stack:
        yield {
            product: stack.enter_context(RedisServer(binary, tmp_path_factory.mktemp(product)))
            for product, binary in assets.redis_servers().items()
        }


@pytest.fixture(scope="session")
def session_api(control_plane: ControlPlane) -> ControlPlane:
    """Give the control plane with CRD, RBAC and admission policies installed and in force."""
    install(control_plane)
    return control_plane


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
    name = f"{request.path.parent.name}-{request.path.stem}".replace("_", "-")
    create_namespace(session_api, name)
    yield name
    remove_namespace(session_api, name)


@pytest.fixture
async def cluster(session_api: ControlPlane, namespace: str) -> AsyncIterator[Cluster]:
    """Give the namespace in the hands of an admin."""
    async with kube_client(session_api.admin_kubeconfig) as admin:
        yield Cluster(admin, namespace)
