"""What scripts wait for with the plain kubectl."""

import pytest
from tests.support.session_world import World

pytestmark = pytest.mark.timeout(90)


def test_a_script_can_wait_for_the_bind(world: World) -> None:
    """Condition Ready is True as soon as the Session is bound."""
    world.apply(world.pod("ready", "--memory=1Gi"), world.session("ready"))

    world.kubectl("wait", "session", "ready", "--for=condition=Ready", "--timeout=30s")

    assert world.status("ready")["phase"] == "Active"


@pytest.mark.parametrize(
    "what",
    ["condition=Finished", "jsonpath={.status.phase}=Destroyed", "condition=GPUReleased"],
)
def test_a_script_can_wait_for_the_end_of_a_closed_session(world: World, what: str) -> None:
    """Neither is true before the evidence is in."""
    world.start("closing", "--memory=1Gi", "--ignore-sigterm", terminationGracePeriodSeconds=2)
    world.close("closing")
    early = world.kubectl(
        "wait", "session", "closing", f"--for={what}", "--timeout=1s", check=False
    )

    world.kubectl("wait", "session", "closing", f"--for={what}", "--timeout=30s")

    assert not early
    assert world.status("closing")["release"]["verdict"] == "Freed"


def test_a_script_can_wait_for_the_object_to_go(world: World) -> None:
    """A deletion in the background is over when its memory is free."""
    pod = world.start("going", "--memory=1Gi")["podUID"]
    born = world.processes(pod)
    world.delete("going")

    world.kubectl("wait", "session", "going", "--for=delete", "--timeout=30s")

    assert born
    assert not any(b.lives for b in born)
