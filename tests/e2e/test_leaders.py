"""Two controllers, one leader: whoever dies or freezes, nothing is done twice or forgotten."""

from collections.abc import Iterator

import pytest
from tests.support.operator_stack import OperatorStack
from tests.support.processes import Process, free_port
from tests.support.session_world import World

pytestmark = pytest.mark.timeout(120)

SLOW = {"terminationGracePeriodSeconds": 3}


@pytest.fixture
def second(stack: OperatorStack) -> Iterator[Process]:
    """Give a controller that stands by; afterwards the first one leads again."""
    second = stack.controller_process("controller-1", metrics_port=free_port())
    with second:
        yield second
    stack.controller.kill()
    stack.controller.start()
    stack.wait_controller_ready()


@pytest.fixture
def nameless(stack: OperatorStack) -> Iterator[Process]:
    """Give a lone controller whose user has no name, as where a platform picks the uid."""
    controller = stack.controller_process("controller-2", metrics_port=free_port())
    stack.controller.stop(20)
    with controller.behind("unshare", "--user", "--map-user=54321") as nameless:
        yield nameless
    stack.controller.start()
    stack.wait_controller_ready()


def _begin_release(world: World, name: str) -> None:
    """Bring a stubborn Session to the middle of its release."""
    world.apply(world.pod(name, "--memory=2Gi", "--ignore-sigterm"))
    world.apply(world.session(name, on_release="None", **SLOW))
    world.wait_phase(name, "Active")
    world.close(name)
    world.wait_phase(name, "PendingDestroy")


def _leads(process: Process) -> bool:
    return process.log_matches('"event": "leading"')


def test_the_second_stands_by_and_follows_a_killed_leader(world: World, second: Process) -> None:
    """Kill -9 in mid-release: the successor ends the Session, in a later epoch."""
    _begin_release(world, "inherited")
    before = world.status("inherited")["leaderEpoch"]
    assert not _leads(second)
    world.stack.controller.kill()

    status = world.wait_phase("inherited", "Destroyed")

    assert _leads(second)
    assert status["release"]["verdict"] == "Freed"
    assert status["leaderEpoch"] > before


def test_a_frozen_leader_that_wakes_up_writes_nothing_more(world: World, second: Process) -> None:
    """SIGSTOP past its Lease, then SIGCONT: it ends itself, and its writes would be refused."""
    _begin_release(world, "frozen")
    frozen = world.stack.controller
    frozen.pause()
    world.wait(lambda: _leads(second), "the second to lead", watched=second)
    status = world.wait_phase("frozen", "Destroyed", watched=second)

    frozen.resume()
    code = frozen.wait(20)

    assert code == 1
    assert world.status("frozen")["leaderEpoch"] == status["leaderEpoch"]


def test_a_leader_that_leaves_hands_over_at_once(world: World, second: Process) -> None:
    """SIGTERM gives the Lease back: a rolling update waits for nobody."""
    world.start("steady", "--memory=1Gi")
    world.stack.controller.stop(20)

    world.wait(lambda: _leads(second), "the second to lead", watched=second)
    world.delete("steady")

    world.wait_gone("steady", watched=second)


def test_a_leader_needs_no_user_name(world: World, nameless: Process) -> None:
    """Its uid stands in no passwd file; it takes over and binds a Session."""
    world.apply(world.pod("nameless", "--memory=2Gi"), world.session("nameless"))

    world.wait_phase("nameless", "Active", watched=nameless)
