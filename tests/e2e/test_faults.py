"""What may die, vanish or be silent on the way, and the end that still comes out right."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.operator_stack import AGENT_SERVER_NAME, OperatorStack
from tests.support.pki import CertificateAuthority
from tests.support.session_world import World

pytestmark = pytest.mark.timeout(120)

SLOW = {"terminationGracePeriodSeconds": 3}
"""With a workload that ignores SIGTERM: time enough to kill something in mid-release."""


@pytest.fixture(autouse=True)
def everything_runs_again(stack: OperatorStack) -> Iterator[None]:
    """Start whatever a test left dead, so that the next one finds a whole stack."""
    yield
    nodes = stack.nodes.values()
    for process in (stack.records, stack.state, stack.controller, *(n.agent for n in nodes)):
        if not process.running:
            process.stop()
            process.start()
    stack.wait_controller_ready()
    for name in stack.nodes:
        stack.wait_agent_ready(name)


def _in_mid_release(world: World, name: str) -> str:
    """Bring a stubborn Session to the middle of its release; returns its Pod's uid."""
    world.apply(world.pod(name, "--memory=2Gi", "--ignore-sigterm"))
    world.apply(world.session(name, on_release="None", **SLOW))
    uid = world.wait_phase(name, "Active")["podUID"]
    world.close(name)
    world.wait(lambda: _ledger_rows(world) == [("releasing", 1)], "the release to begin")
    return uid


def _ledger_rows(world: World) -> list[tuple[str, int]]:
    """Copy the ledger as a crash would leave it, and read state and attempts off it."""
    ledger = world.node("node-a").ledger
    copy = ledger.with_suffix(".copy")
    for end in ("", "-wal"):
        source = ledger.with_name(ledger.name + end)
        if source.exists():
            shutil.copy(source, copy.with_name(copy.name + end))
    query = "SELECT state, attempts FROM sessions WHERE namespace = ?"
    with sqlite3.connect(copy) as db:
        rows = db.execute(query, (world.namespace,)).fetchall()
    db.close()
    return rows


def test_a_controller_killed_in_mid_release_ends_it_after_its_return(world: World) -> None:
    """Kill -9 of the controller: the next one joins or repeats the release, done once."""
    uid = _in_mid_release(world, "orphaned")
    world.stack.controller.kill()

    world.stack.controller.start()
    status = world.wait_phase("orphaned", "Destroyed")

    assert status["release"]["verdict"] == "Freed"
    assert status["release"]["memoryBytesBefore"] == 2 * 2**30
    assert [state for state, _ in _ledger_rows(world)] == ["done"]
    assert not world.processes(uid)


def test_an_agent_killed_in_mid_release_ends_it_after_its_return(world: World) -> None:
    """Kill -9 of the agent: its ledger knows what had begun."""
    uid = _in_mid_release(world, "unfinished")
    world.node("node-a").agent.kill()

    world.wait(
        lambda: world.reason("unfinished", "GPUReleased") == "AgentUnreachable", "the condition"
    )
    world.node("node-a").agent.start()
    status = world.wait_phase("unfinished", "Destroyed")

    assert status["release"]["verdict"] == "Freed"
    assert status["release"]["attempts"] == 2
    assert not world.processes(uid)


def test_a_session_waits_visibly_for_a_stopped_agent(world: World) -> None:
    """Without the agent nothing is claimed: PendingDestroy, AgentUnreachable, finalizer held."""
    world.start("patient", "--memory=1Gi")
    world.node("node-a").agent.stop()

    world.delete("patient")
    world.wait(
        lambda: world.reason("patient", "GPUReleased") == "AgentUnreachable", "the condition"
    )
    assert world.status("patient")["phase"] == "PendingDestroy"
    world.node("node-a").agent.start()

    world.wait_gone("patient")


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")
def test_an_agent_in_another_pid_namespace_says_unknown(world: World) -> None:
    """It would see an empty GPU; so it proves its namespace first, and signals nobody."""
    status = world.start("hidden", "--memory=1Gi")
    born = world.processes(status["podUID"])
    node = world.node("node-a")
    outside = node.agent
    outside.stop()
    blind = outside.behind("unshare", "--pid", "--fork", "--kill-child")
    with blind:
        world.wait(lambda: blind.log_matches("agent serves"), "the blind agent")
        world.close("hidden")
        world.wait(lambda: world.reason("hidden", "GPUReleased") == "NotObservable", "UNKNOWN")

        assert world.status("hidden")["phase"] == "PendingDestroy"
    outside.start()

    assert world.wait_phase("hidden", "Destroyed")["release"]["verdict"] == "Freed"
    assert not any(b.lives for b in born)


@pytest.fixture
def rotated(stack: OperatorStack, tmp_path: Path) -> Iterator[CertificateAuthority]:
    """Give an authority that has taken over node-a's agent, until the test is over."""
    new, node = CertificateAuthority(tmp_path), stack.nodes["node-a"]
    before = [(path, path.read_bytes()) for path in (*node.agent_tls, stack.agent_ca_file)]
    for made, path in zip(new.issue("a", sans=[AGENT_SERVER_NAME]), node.agent_tls, strict=True):
        shutil.copy(made, path)
    node.agent.stop()
    node.agent.start()
    yield new
    for path, content in before:
        path.write_bytes(content)
    node.agent.stop()  # and it starts again with the certificate that it had


def test_a_controller_believes_a_new_authority_without_a_restart(
    world: World, rotated: CertificateAuthority
) -> None:
    """The agents' certificates come from another authority: only its file has to change."""
    world.apply(world.pod("rotated", "--memory=1Gi"), world.session("rotated"))
    world.wait(lambda: world.status("rotated").get("reason") == "AgentUnreachable", "distrust")

    shutil.copy(rotated.ca_file, world.stack.agent_ca_file)

    world.wait_phase("rotated", "Active")
    world.close("rotated")
    world.wait_phase("rotated", "Destroyed")


def test_a_session_without_state_needs_no_redis_to_end(world: World) -> None:
    """Both Redis servers are gone, and the Session ends as ever."""
    world.start("stateless", "--memory=1Gi")
    world.stack.records.stop()
    world.stack.state.stop()

    world.kubectl("delete", "session", "stateless", "--timeout=30s")

    assert world.get("stateless") is None


def test_state_that_cannot_be_cleared_keeps_the_session(world: World) -> None:
    """GPUReleased is True, StateCleared says RedisUnavailable, and the return ends it."""
    key = f"{world.namespace}:keeper:a"
    world.start("keeper", "--memory=1Gi", state={"keys": [key]})
    world.stack.state.stop()

    world.close("keeper")
    world.wait(
        lambda: world.reason("keeper", "StateCleared") == "RedisUnavailable", "the condition"
    )
    assert world.reason("keeper", "GPUReleased") == "Freed"
    assert world.status("keeper")["phase"] == "PendingDestroy"
    world.stack.state.start()

    world.wait_phase("keeper", "Destroyed")


def test_a_replaced_pod_ends_the_session_and_lives_on(world: World) -> None:
    """A same-named Pod with another UID is somebody else's: it is neither bound nor deleted."""
    world.start("phoenix", "--memory=1Gi")
    world.stack.controller.stop()
    world.kubectl("delete", "pod", "phoenix", "--grace-period=1")
    world.apply(world.pod("phoenix", "--memory=1Gi"))
    world.stack.controller.start()

    status = world.wait_phase("phoenix", "Destroyed")

    pod = world.get_pod("phoenix") or {}
    assert status["reason"] == "PodReplaced"
    assert "deletionTimestamp" not in pod["metadata"]


def test_a_pod_that_ends_by_itself_ends_its_session(world: World) -> None:
    """The workload crashed: its memory is verified free, and its Pod deleted, all the same."""
    world.start("crash", "--memory=1Gi", "--exit-after=2", "--exit-code=3")

    status = world.wait_phase("crash", "Destroyed")

    assert status["reason"] == "PodTerminated"
    assert status["release"]["verdict"] == "Freed"
    assert world.get_pod("crash") is None


def test_a_deleted_node_ends_its_sessions_without_an_agent(world: World) -> None:
    """The Node object is gone: NodeGone, and the controller clears the state itself."""
    key = f"{world.namespace}:stranded:a"
    world.start("stranded", "--memory=1Gi", node="node-b", state={"keys": [key]})
    node = world.node("node-b")
    node.agent.stop()
    node.kubelet.process.pause()
    world.stack.plane.kubectl("delete", "node", "node-b", "--wait=false")

    status = world.wait_phase("stranded", "Destroyed")
    node.kubelet.stop()
    node.kubelet.start()

    assert status["reason"] == "NodeGone"
    assert status["release"]["verdict"] == "NodeGone"
    assert world.reason("stranded", "StateCleared") in ("Cleared", "NothingToClear")


def test_a_human_may_give_up_on_the_evidence(world: World) -> None:
    """The override is signed, recorded with its time, and never looks like a release."""
    world.start("hopeless", "--memory=1Gi")
    world.node("node-a").agent.stop()
    world.close("hopeless")
    world.wait(
        lambda: world.reason("hopeless", "GPUReleased") == "AgentUnreachable", "the condition"
    )

    signed = "gpusession.dev/override-release-by=ada"
    world.kubectl("annotate", "session", "hopeless", signed, "--as=ada")
    status = world.wait_phase("hopeless", "Destroyed")

    assert status["release"]["verdict"] == "Overridden"
    message = next(c["message"] for c in status["conditions"] if c["type"] == "GPUReleased")
    assert "ada" in message


def test_a_controller_leaves_in_good_form_on_sigterm(world: World) -> None:
    """SIGTERM drains and exits with 0; Sessions stay as they are."""
    world.start("steady", "--memory=1Gi")
    controller = world.stack.controller
    controller.signal(15)

    assert controller.wait(20) == 0

    assert world.status("steady")["phase"] == "Active"
