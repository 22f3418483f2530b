"""Whatever breaks between clients and controller: no Session ends whose client lives.

Three Sessions with clients outlive every fault here; after each of them one that is really
silent still ends. Who fell silent is found before, in or after the fault alike.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from tests.support.clients_world import ClientsWorld
from tests.support.faults_world import NEVER_IDLE, TWO_THRESHOLDS, Crowd, copy_from, freeze, promote
from tests.support.operator_stack import OperatorStack

pytestmark = pytest.mark.timeout(120)

HOUR = 3600
LOST = {"HeartbeatLost", "Disconnected"}

Fault = Callable[[OperatorStack], None]
Loss = Callable[[OperatorStack, Callable[[], None]], None]


@pytest.fixture(scope="module")
def crowd(clients: ClientsWorld) -> Crowd:
    """Give three Sessions with living clients."""
    return Crowd(clients)


@pytest.fixture(autouse=True)
def everything_runs_again(stack: OperatorStack, crowd: Crowd) -> Iterator[None]:
    """Mend whatever a test left broken, and see the clients come back."""
    yield
    stack.clock.move(0)
    for process in (stack.controller, *(gateway.process for gateway in stack.gateways)):
        process.resume()
        if not process.running:
            process.kill()
            process.start()
    stack.wait_controller_ready()
    crowd.wait_heard()
    crowd.assert_alive()


def wiped(stack: OperatorStack, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Redis is away for two thresholds and comes back empty."""
    meanwhile()
    stack.records.kill()
    time.sleep(TWO_THRESHOLDS)
    stack.records.start()


def emptied(stack: OperatorStack) -> None:
    """Everything in Redis goes, Redis itself stays."""
    with stack.redis() as client:
        client.flushall()


def rewound(stack: OperatorStack, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Redis comes back as it was two thresholds ago, and has forgotten what came since."""
    with stack.redis() as client:
        client.save()
    meanwhile()
    time.sleep(TWO_THRESHOLDS)
    stack.records.kill()
    stack.records.start()
    stack.records.dump.unlink()


def forward(stack: OperatorStack) -> None:
    """Redis' clock jumps an hour ahead."""
    stack.clock.move(HOUR)
    time.sleep(TWO_THRESHOLDS)


def backward(stack: OperatorStack) -> None:
    """Redis' clock jumps an hour back."""
    stack.clock.move(-HOUR)
    time.sleep(TWO_THRESHOLDS)


def frozen_redis(stack: OperatorStack) -> None:
    """Redis is frozen for two thresholds."""
    stack.records.pause()
    time.sleep(TWO_THRESHOLDS)
    stack.records.resume()


def frozen_controller(stack: OperatorStack) -> None:
    """Freeze the controller for two thresholds; one that has lost its Lease starts again."""
    freeze(stack.controller)
    stack.keep_controller()


def frozen_gateways(stack: OperatorStack) -> None:
    """All gateways are frozen for two thresholds."""
    freeze(*(gateway.process for gateway in stack.gateways))


def failed_over(stack: OperatorStack, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Redis fails over to a replica that lags two thresholds behind, and back to an empty one."""
    with ExitStack() as undo:
        replica = undo.enter_context(stack.records_server("replica"))
        copy_from(replica, stack.records)
        replica.pause()
        meanwhile()
        time.sleep(TWO_THRESHOLDS)
        stack.records.kill()
        replica.resume()
        promote(replica)
        stack.lead_to_records(replica.port)
        time.sleep(TWO_THRESHOLDS)
        stack.records.start()
    stack.lead_to_records(stack.records.port)


def cut_off_gateway(stack: OperatorStack) -> None:
    """One of three gateways does not reach Redis for two thresholds, and is not ready then."""
    ports = [gateway.port for gateway in stack.gateways]
    link = stack.gateways[0].link
    assert link is not None
    link.cut()
    time.sleep(1)
    stack.front.open_to(*ports[1:])
    time.sleep(TWO_THRESHOLDS)
    link.mend()
    stack.wait_gateway_ready(stack.gateways[0])
    stack.front.open_to(*ports)


def killed_gateway(stack: OperatorStack) -> None:
    """One of three gateways is killed, and comes back two thresholds later."""
    stack.gateways[1].process.kill()
    time.sleep(TWO_THRESHOLDS)
    stack.gateways[1].process.start()


FAULTS: tuple[Fault, ...] = (
    wiped,
    emptied,
    rewound,
    forward,
    backward,
    frozen_redis,
    failed_over,
    frozen_controller,
    frozen_gateways,
    cut_off_gateway,
    killed_gateway,
)

LOSSES: tuple[Loss, ...] = (wiped, rewound, failed_over)
"""Faults that lose what was written last, with what is to happen just before it is lost."""

BESIDE_ENDS = {forward, cut_off_gateway, killed_gateway}
"""Faults in which the silent still end, so that only one who dies afterwards shows anything."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_living_outlive_a_fault_and_the_silent_end_after_it(crowd: Crowd, fault: Fault) -> None:
    """One client dies with the fault, or after one that ends nothing: only its Session ends."""
    name = fault.__name__.replace("_", "-")
    dies = crowd.one_who_dies(name)
    if fault not in BESIDE_ENDS:
        dies.kill()

    fault(crowd.stack)

    dies.kill()
    assert crowd.world.ended_as(name) in LOST
    crowd.assert_alive()


def test_who_was_at_a_killed_gateway_has_a_fresh_threshold(crowd: Crowd) -> None:
    """It comes back by another one, with the same token; who dies with it ends all the same."""
    stack, gateway = crowd.stack, crowd.stack.gateways[2]
    stack.front.lead_to(gateway.port)
    crowd.wait_heard()
    dead = crowd.one_who_dies("with-it")
    gateway.process.kill()
    dead.kill()

    stack.front.lead_to(*(each.port for each in stack.gateways))

    assert crowd.world.ended_as("with-it") == "HeartbeatLost"
    crowd.wait_heard()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_client_with_one_token_outlives_its_loss(crowd: Crowd, loss: Loss) -> None:
    """Its token is younger than the copy that comes back, and most gateways never knew it."""
    world, patient = crowd.world, {"periodSeconds": 1, "failureThreshold": 10}
    name = f"one-token-{loss.__name__}".replace("_", "-")
    world.start(name, "--memory=1Gi", heartbeat=patient, **NEVER_IDLE)
    before = len(world.clients)

    def come_with_a_new_token() -> None:
        world.client_with_a_token(name)
        world.wait(lambda: crowd.heard(name), "the client")

    loss(crowd.stack, come_with_a_new_token)

    world.wait(lambda: crowd.heard(name), "the client again")
    assert [client.running for client in world.clients[before:]] == [True]
    assert world.status(name)["phase"] == "Active"


def test_a_controller_that_dies_at_any_moment_ends_each_session_once(crowd: Crowd) -> None:
    """Four Sessions fall silent, and it is killed again and again while it ends them."""
    names = [f"any-{number}" for number in range(4)]
    clients = [crowd.one_who_dies(name) for name in names]
    for client in clients:
        client.kill()

    draw = random.Random(4)  # noqa: S311 - repeatable
    for _ in range(5):
        time.sleep(draw.uniform(0.5, 1.5))
        crowd.stack.controller.kill()
        crowd.stack.controller.start()
        crowd.stack.wait_controller_ready()

    assert {crowd.world.ended_as(name) for name in names} <= LOST
    verdicts = {crowd.world.status(name)["release"]["verdict"] for name in names}
    assert verdicts == {"Freed"}
