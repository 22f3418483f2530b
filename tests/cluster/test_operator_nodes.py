"""Nodes leave: drained, without power, or rebooted; each end says what was seen of it."""

import pytest
from tests.cluster import installation, outside
from tests.cluster.stage import Stage, condition, pod

pytestmark = pytest.mark.timeout(300)


def test_drained_node_ends_its_sessions_on_evidence(stage: Stage) -> None:
    """An evicted Pod is gone, and its memory was seen to be free."""
    bound = stage.start("drained", "--memory=1Gi")
    node = bound["nodeName"]

    stage.kubectl(
        *("drain", node, "--ignore-daemonsets", "--force", "--delete-emptydir-data"),
        *("--pod-selector=gpusession.dev/use=exclusive", "--grace-period=2", "--timeout=60s"),
    )
    ended = stage.wait_phase("drained", "Destroyed")
    stage.kubectl("uncordon", node)

    assert ended["reason"] in {"PodGone", "PodTerminated"}
    assert ended["release"]["verdict"] == "Freed"
    assert outside.living(bound["podUID"]) == []


def test_node_is_drained_as_people_type_it(stage: Stage) -> None:
    """Leader, gateway and DNS are evicted with the Session's Pod; none of them is in the way."""
    node = stage.node_of_leader()
    bound = stage.start_pod(pod("evicted", "--memory=1Gi", nodeName=node))

    drain = ("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force")
    stage.kubectl(*drain, "--timeout=120s")
    try:
        ended = stage.wait_phase("evicted", "Destroyed")
        left = stage.pods_of_product(node)
    finally:
        stage.kubectl("uncordon", node)

    assert ended["reason"] in {"PodGone", "PodTerminated"}
    assert ended["release"]["verdict"] == "Freed"
    assert outside.living(bound["podUID"]) == []
    assert all(name.startswith("gpusession-agent-") for name in left)
    installation.wait_rolled_out(stage.cluster)


def test_node_that_lost_its_power_ends_its_sessions_as_node_gone(stage: Stage) -> None:
    """Somebody says that it is out of service; nobody claims to have seen the memory free.

    The leader goes with it, and the next one hears the same.
    """
    node = stage.node_of_leader()
    bound = stage.start_pod(pod("stranded", "--memory=1Gi", nodeName=node))
    stage.cluster.kill_node(node)
    assert outside.living(bound["podUID"]) == []
    stage.kubectl("taint", "node", node, "node.kubernetes.io/out-of-service=gone:NoExecute")

    ended = stage.wait_phase("stranded", "Destroyed")
    stage.kubectl("taint", "node", node, "node.kubernetes.io/out-of-service-")
    stage.cluster.boot_node(node)
    stage.cluster.wait_ready(node)

    assert (ended["reason"], ended["release"]["verdict"]) == ("NodeGone", "NodeGone")


def test_rebooted_node_settles_by_its_boot_id_what_was_ended_meanwhile(stage: Stage) -> None:
    """While it is down the condition says what is missing; memory does not survive a reboot."""
    node = stage.node_without_leader()
    bound = stage.start_pod(pod("cut-off", "--memory=1Gi", nodeName=node))
    stage.cluster.kill_node(node)
    stage.ask_to_end("cut-off")
    stage.wait_condition("cut-off", "GPUReleased", "Unknown AgentUnreachable")

    stage.cluster.boot_node(node)
    stage.cluster.wait_ready(node)
    ended = stage.wait_phase("cut-off", "Destroyed")

    assert (ended["reason"], ended["release"]["verdict"]) == ("ExplicitClose", "NodeGone")
    assert "has rebooted since the bind" in condition(ended, "GPUReleased")["message"]
    assert outside.living(bound["podUID"]) == []


def test_pod_that_a_rebooted_node_starts_again_keeps_its_session(stage: Stage) -> None:
    """It is the same Pod with the same GPU; what ends it later sees the memory freed."""
    node = stage.node_without_leader()
    agent = stage.agent(node)
    bound = stage.start_pod(pod("returns", "--memory=1Gi", nodeName=node))

    stage.cluster.kill_node(node)
    stage.cluster.boot_node(node)
    stage.wait_restarted("returns")
    stage.wait_holding("returns")
    stage.wait_agent(node, after=agent)
    assert stage.status("returns")["phase"] == "Active"
    ended = stage.close("returns")

    assert (ended["reason"], ended["release"]["verdict"]) == ("ExplicitClose", "Freed")
    assert outside.living(bound["podUID"]) == []
