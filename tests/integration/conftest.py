"""Real servers, started once for the whole run: the first test that asks for one pays."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.support import assets
from tests.support.control_plane import ControlPlane
from tests.support.redis_server import RedisServer
from tests.support.session_api import install


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
