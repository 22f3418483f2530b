"""One stack for the whole run, and a namespace of its own for each test."""

import itertools
from collections.abc import Iterator

import pytest
from tests.support.operator_stack import OperatorStack
from tests.support.session_world import World

NAMES = itertools.count(1)


@pytest.fixture(scope="session")
def stack() -> Iterator[OperatorStack]:
    """Give the whole product on two simulated nodes, impatient so that tests are quick."""
    impatient = {"RESYNC_PERIOD": "PT5S", "RETRY_CAP": "PT1S", "AGENT_TIMEOUT": "PT5S"}
    with OperatorStack(controller_settings=impatient) as running:
        yield running


@pytest.fixture
def world(stack: OperatorStack) -> Iterator[World]:
    """Give an empty namespace; what a test leaves in it is ended afterwards."""
    world = World(stack, f"e2e-{next(NAMES)}")
    yield world
    stack.plane.kubectl("delete", "namespace", world.namespace, "--wait=false", check=False)
