"""Our own clients of the real apiserver: as the controller, as the agent, and as an admin."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.cluster import Cluster, kube_client
from tests.support.control_plane import ControlPlane
from tests.support.session_api import create_namespace, remove_namespace

from gpusession.kube.client import KubeClient


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
    name = "kube-" + request.path.stem.replace("_", "-")
    create_namespace(session_api, name)
    yield name
    remove_namespace(session_api, name)


@pytest.fixture
async def client(controller_kubeconfig: Path) -> AsyncIterator[KubeClient]:
    """Give a client with the controller's rights."""
    async with kube_client(controller_kubeconfig) as client:
        yield client


@pytest.fixture
async def cluster(session_api: ControlPlane, namespace: str) -> AsyncIterator[Cluster]:
    """Give the namespace in the hands of an admin."""
    async with kube_client(session_api.admin_kubeconfig) as admin:
        yield Cluster(admin, namespace)
