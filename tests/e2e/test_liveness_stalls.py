"""Short thresholds, shipped settings: whatever stands still for some seconds costs nobody.

Nothing is turned down to fit: a gateway's lease is 10 s and a gap in the watch 5 s, while
Sessions here end after 3 s of silence, or half a second after a disconnect.
"""

import json
import time
from collections.abc import Iterator

import pytest
from tests.support.clients_world import ClientsWorld
from tests.support.faults_world import NEVER_IDLE, Crowd
from tests.support.operator_stack import OperatorStack

pytestmark = pytest.mark.timeout(120)

QUICK = {"disconnectGraceMilliseconds": 500} | NEVER_IDLE


@pytest.fixture(scope="module")
def shipped() -> Iterator[OperatorStack]:
    """Give the product with its own settings, two gateways."""
    with OperatorStack(nodes=("node-a",), gateways=2, links=True) as running:
        yield running


@pytest.fixture(scope="module")
def crowd(shipped: OperatorStack) -> Iterator[Crowd]:
    """Give three Sessions with living clients."""
    world = ClientsWorld(shipped, "stalls")
    yield Crowd(world)
    world.end_clients()


def test_a_gateway_that_stands_still_within_its_lease_ends_nobody(crowd: Crowd) -> None:
    """Twice the threshold: the beats of its clients wait in its sockets."""
    gateways = [gateway.process for gateway in crowd.stack.gateways]
    for process in gateways:
        process.pause()
    time.sleep(6)
    for process in gateways:
        process.resume()

    crowd.wait_heard()
    time.sleep(4)
    crowd.assert_alive()


def test_one_of_two_that_stands_still_ends_nobody(crowd: Crowd) -> None:
    """Others live meanwhile, so the watch has no gap at all."""
    process = crowd.stack.gateways[0].process
    process.pause()
    time.sleep(6)
    process.resume()

    crowd.wait_heard()
    time.sleep(4)
    crowd.assert_alive()


def test_a_redis_that_stands_still_for_less_than_a_gap_ends_nobody(crowd: Crowd) -> None:
    """The controller is first to be answered, and clients come after their gateways' pauses."""
    crowd.stack.records.pause()
    time.sleep(4)
    crowd.stack.records.resume()

    crowd.wait_heard()
    time.sleep(4)
    crowd.assert_alive()


def test_a_heartbeat_that_becomes_short_ends_no_living_session(crowd: Crowd) -> None:
    """Its client came with 30 s; it is told, and beats each second from then on."""
    world = crowd.world
    slow = {"heartbeat": {"periodSeconds": 30, "failureThreshold": 3, "initialDelaySeconds": 1}}
    client = world.start_with_client("hurried", **slow, **NEVER_IDLE)
    before = int(world.record("hurried")["n"])
    quick = json.dumps({"spec": world.beats(delay=1)})

    world.kubectl("patch", "session", "hurried", "--type=merge", f"--patch={quick}")

    # Four seconds are deadly without a beat, and half a minute brought one before.
    world.wait(lambda: int(world.record("hurried")["n"]) >= before + 10, "ten beats")
    assert world.status("hurried")["phase"] == "Active"
    assert client.running


def test_silence_and_a_disconnect_still_end_their_sessions(crowd: Crowd) -> None:
    """By the same settings, and after all that stood still."""
    world = crowd.world
    silent, leaving = crowd.one_who_dies("falls-silent"), world.start_with_client("leaves", **QUICK)

    silent.pause()
    leaving.kill()

    assert world.ended_as("leaves") == "Disconnected"
    assert world.ended_as("falls-silent") == "HeartbeatLost"
    crowd.assert_alive()
