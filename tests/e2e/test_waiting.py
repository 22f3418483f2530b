"""What a Session says while it waits for its Pod, and what it must not do meanwhile."""

import json

import pytest
import redis
from tests.support.session_world import World

pytestmark = pytest.mark.timeout(90)


def test_a_session_may_come_before_its_pod(world: World) -> None:
    """It says PodNotFound, holds its finalizer, and becomes Active once the Pod runs."""
    world.apply(world.session("early"))
    world.wait(lambda: world.status("early").get("reason") == "PodNotFound", "PodNotFound")
    assert (world.get("early") or {})["metadata"]["finalizers"] == ["gpusession.dev/release"]

    world.apply(world.pod("early", "--memory=1Gi"))

    world.wait_phase("early", "Active")


def test_a_pod_without_the_label_is_never_bound_nor_touched(world: World) -> None:
    """The Pod opts in; until then the Session waits, and its end leaves the Pod alone."""
    world.apply(world.pod("plain", "--memory=1Gi", labels={}), world.session("plain"))
    world.wait(lambda: world.status("plain").get("reason") == "PodNotManaged", "PodNotManaged")

    world.kubectl("delete", "session", "plain", "--timeout=30s")

    pod = world.get_pod("plain") or {}
    assert pod["status"]["phase"] == "Running"
    assert "deletionTimestamp" not in pod["metadata"]


def test_a_second_session_for_a_pod_waits_and_its_end_spares_the_first(world: World) -> None:
    """PodInUse: deleting the one that never had the Pod must not end its living owner."""
    status = world.start("owner", "--memory=1Gi")
    world.apply(world.session("latecomer", pod="owner"))
    world.wait(lambda: world.status("latecomer").get("reason") == "PodInUse", "PodInUse")

    world.kubectl("delete", "session", "latecomer", "--timeout=30s")

    born = world.processes(status["podUID"])
    assert born
    assert all(b.lives for b in born)
    assert world.status("owner")["phase"] == "Active"


def test_a_node_without_agent_shows_as_agent_unreachable(world: World) -> None:
    """A running Pod on a node that no agent serves keeps its Session Pending, and says why."""
    world.apply(world.pod("remote", node="node-x"), world.session("remote"))
    running = json.dumps({"status": {"phase": "Running"}})
    world.kubectl("patch", "pod", "remote", "--subresource=status", "--type=merge", "-p", running)

    world.wait(lambda: world.status("remote").get("reason") == "AgentUnreachable", "the reason")

    assert world.status("remote")["phase"] == "Pending"
    world.kubectl("delete", "session", "remote", "--timeout=30s")


def test_closing_a_session_that_was_never_bound_says_not_bound(world: World) -> None:
    """No bind was begun, so there is nothing to free: that is evidence too."""
    world.apply(world.session("unborn", desiredPhase="Destroyed"))

    assert world.wait_phase("unborn", "Destroyed")["release"]["verdict"] == "NotBound"


def test_the_state_of_a_session_that_was_never_bound_is_cleared_too(world: World) -> None:
    """Without a node there is no agent to do it, so the controller does."""
    key = f"{world.namespace}:unborn:a"
    with redis.Redis.from_url(world.stack.state.url) as client:
        client.set(key, 1)
        world.apply(world.session("unborn", desiredPhase="Destroyed", state={"keys": [key]}))

        status = world.wait_phase("unborn", "Destroyed")

        assert status["release"]["verdict"] == "NotBound"
        assert client.get(key) is None
