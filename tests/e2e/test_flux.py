"""How Flux reads a Session: kstatus itself, over objects that the operator has written."""

from collections.abc import Iterator

import msgspec
import pytest
from tests.support.builders import after, decide, make_life, make_session
from tests.support.kstatus_tool import Health, kstatus
from tests.support.processes import Process
from tests.support.session_world import World

from gpusession.api.session import ConditionType, Phase, Reason, SessionStatus
from gpusession.rules.conditions import find, holds
from gpusession.rules.observation import Claimed, Outcome

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Build kstatus before a test's own time runs."""
    kstatus({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "any"}})


@pytest.fixture
def agent(world: World) -> Iterator[Process]:
    """Give node-a's agent, which runs again afterwards."""
    agent = world.node("node-a").agent
    yield agent
    if not agent.running:
        agent.start()
    world.stack.wait_agent_ready("node-a")


@pytest.fixture
def paused_controller(world: World) -> Iterator[Process]:
    """Give a way to freeze the controller, which goes on afterwards."""
    yield world.stack.controller
    world.stack.controller.resume()


def judged_status(status: SessionStatus) -> Health:
    """Have kstatus judge a status as the rules would have it written."""
    return kstatus(
        {
            "apiVersion": "gpusession.dev/v1alpha1",
            "kind": "Session",
            "metadata": {"name": "s", "namespace": "n", "generation": status.observed_generation},
            "status": msgspec.to_builtins(status),
        }
    )


def judged(world: World, name: str) -> Health:
    """Have kstatus judge a Session as it stands."""
    session = world.get(name)
    assert session is not None
    return kstatus(session)


def test_a_waiting_session_is_in_progress_and_says_why(world: World) -> None:
    """Flux goes on waiting, and shows the controller's own sentence."""
    world.apply(world.session("early"))
    world.wait(lambda: world.status("early").get("reason") == "PodNotFound", "PodNotFound")
    ready = next(c for c in world.status("early")["conditions"] if c["type"] == "Ready")

    assert judged(world, "early") == Health("InProgress", ready["message"])


def test_an_active_session_is_current(world: World) -> None:
    """It has what its manifest asks for."""
    world.start("busy", "--memory=1Gi")

    assert judged(world, "busy").status == "Current"


def test_a_spec_that_nobody_has_acted_on_is_in_progress(
    world: World, paused_controller: Process
) -> None:
    """The generation is ahead of what was observed, until the controller has looked."""
    world.start("stale", "--memory=1Gi")
    paused_controller.pause()
    world.kubectl("patch", "session", "stale", "--type=merge", '-p={"spec":{"priority":7}}')
    before = judged(world, "stale").status
    paused_controller.resume()

    world.wait(lambda: judged(world, "stale").status == "Current", "stale to be Current")

    assert before == "InProgress"


def test_a_closed_session_is_in_progress_until_it_is_destroyed(
    world: World, agent: Process
) -> None:
    """The manifest asks for Destroyed; Flux waits for the evidence and then is content."""
    world.start("closed", "--memory=1Gi")
    agent.stop()
    world.close("closed")
    world.wait_phase("closed", "PendingDestroy")
    before = judged(world, "closed").status
    agent.start()

    world.wait_phase("closed", "Destroyed")

    assert (before, judged(world, "closed").status) == ("InProgress", "Current")


def test_a_deleted_session_is_terminating(world: World, agent: Process) -> None:
    """A prune waits for as long as the finalizer does."""
    world.start("pruned", "--memory=1Gi")
    agent.stop()
    world.delete("pruned")
    world.wait_phase("pruned", "PendingDestroy")

    assert judged(world, "pruned").status == "Terminating"


def test_a_session_that_no_controller_has_seen_looks_current(
    world: World, paused_controller: Process
) -> None:
    """The one gap, and it is kstatus' own: an object without any status counts as done."""
    paused_controller.pause()
    world.apply(world.session("unseen"))

    assert judged(world, "unseen").status == "Current"


def test_a_session_whose_expiry_is_paused_is_current() -> None:
    """It is bound and has what it asks for; that most are silent is no fault of its own."""
    paused = make_life(Reason.HEARTBEAT_LOST, held="most are silent", pauses=True)
    status, _ = decide(make_session(Phase.ACTIVE), life=paused)

    assert holds(status, ConditionType.EXPIRY_PAUSED)
    assert judged_status(status).status == "Current"


def test_a_session_in_its_grace_is_in_progress_until_a_client_returns() -> None:
    """Flux waits: either the client comes back, or the manifest is to be acted on again."""
    bound = make_session(Phase.ACTIVE, destroy_grace_seconds=60)
    claimed = Claimed(Reason.HEARTBEAT_LOST, Outcome.WON, final=False)
    waits = decide(bound, claimed=claimed)
    resumed, _ = decide(after(bound, waits), life=make_life())

    released = find(waits[0], ConditionType.GPU_RELEASED)
    assert released is not None
    assert released.reason == Reason.DESTROY_GRACE
    assert judged_status(waits[0]).status == "InProgress"
    assert (resumed.phase, judged_status(resumed).status) == (Phase.ACTIVE, "Current")
