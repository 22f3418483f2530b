"""One fake gateway for the whole run, as good as new for each test."""

from collections.abc import Iterator

import pytest
from tests.support.client_rig import FakeGateway


@pytest.fixture(scope="session")
def gateway_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGateway]:
    """Give the running program."""
    with FakeGateway(tmp_path_factory.mktemp("fake-gateway")) as running:
        yield running


@pytest.fixture
def gateway(gateway_program: FakeGateway) -> FakeGateway:
    """Give a fake gateway that knows token-0, and makes token-1 and token-2 for kube-0."""
    gateway_program.reset()
    return gateway_program
