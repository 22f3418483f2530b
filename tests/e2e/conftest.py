"""One stack for the whole run, and a namespace of its own for each test."""

import itertools
from collections.abc import Generator, Iterator

import pytest
from tests.support.clients_world import ClientsWorld
from tests.support.operator_stack import OperatorStack
from tests.support.session_world import World
from tests.support.stack_diagnosis import diagnosis

NAMES = itertools.count(1)

IMPATIENT = {
    "RESYNC_PERIOD": "PT5S",
    "RETRY_CAP": "PT1S",
    "AGENT_TIMEOUT": "PT5S",
    "REDIS_TIMEOUT": "PT1S",
    "CENSUS_PERIOD": "PT1S",
    "USAGE_PERIOD": "PT2S",
    "DEADLINE_LEASE": "PT2S",
    "LONGEST_SWEEP_GAP": "PT1.5S",
    "BRAKE_MINIMUM": "100",  # what is to be held back here is held back by evidence
}

QUICK_AGENTS = {"USAGE_WINDOW": "PT10S", "OBSERVE_PERIOD": "PT1S"}

QUICK_GATEWAYS = {
    "LEASE_TTL": "PT2S",
    "REDIS_TIMEOUT": "PT0.5S",
    "ANSWER_TIMEOUT": "PT1S",
    "PING_PERIOD": "PT1S",
    "SILENCE_LIMIT": "PT10S",  # beyond the threshold: who is frozen is lost, not disconnected
    "DRAIN_SPREAD": "PT0.5S",
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Leave in the output of a failure what the stack looked like at that moment."""
    report = yield
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.failed and stack is not None:
        report.sections.append(("the stack at that moment", diagnosis(stack)))
    return report


@pytest.fixture(scope="package")
def stack() -> Iterator[OperatorStack]:
    """Give the whole product on two simulated nodes, impatient so that tests are quick."""
    with OperatorStack(
        controller_settings=IMPATIENT,
        agent_settings=QUICK_AGENTS,
        gateways=3,
        gateway_settings=QUICK_GATEWAYS,
        links=True,
    ) as running:
        yield running


@pytest.fixture
def world(stack: OperatorStack) -> Iterator[World]:
    """Give an empty namespace; what a test leaves in it is ended afterwards."""
    stack.revive_controller()
    world = World(stack, f"e2e-{next(NAMES)}")
    yield world
    stack.plane.kubectl("delete", "namespace", world.namespace, "--wait=false", check=False)


@pytest.fixture(scope="module")
def clients(stack: OperatorStack) -> Iterator[ClientsWorld]:
    """Give a namespace whose Sessions have clients, for all tests of a module."""
    stack.revive_controller()
    world = ClientsWorld(stack, f"e2e-{next(NAMES)}")
    yield world
    world.end_clients()
    stack.plane.kubectl("delete", "namespace", world.namespace, "--wait=false", check=False)
