"""Our own clients of the real apiserver: as the controller, as the agent, and as an admin."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.cluster import kube_client

from gpusession.kube.client import KubeClient


@pytest.fixture
async def client(controller_kubeconfig: Path) -> AsyncIterator[KubeClient]:
    """Give a client with the controller's rights."""
    async with kube_client(controller_kubeconfig) as client:
        yield client
