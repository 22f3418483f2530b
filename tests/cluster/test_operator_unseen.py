"""An agent that cannot see claims nothing, on a real kubelet: the pid namespace of the node."""

import json

import pytest
from tests.cluster import installation, outside
from tests.cluster.installation import AGENTS
from tests.cluster.stage import PERIOD, SECONDS, Object, Stage, condition
from tests.support.processes import wait_until

pytestmark = pytest.mark.timeout(300)

SEEING: Object = {
    "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
    "template": {"spec": {"hostPID": True}},
}
BLIND: Object = {
    "updateStrategy": {"type": "OnDelete", "rollingUpdate": None},  # the other node's agent stays
    "template": {"spec": {"hostPID": False}},
}


def set_agents(stage: Stage, spec: Object) -> None:
    """Change the DaemonSet."""
    patch = f"--patch={json.dumps({'spec': spec})}"
    stage.kubectl("patch", "daemonset/gpusession-agent", f"--namespace={AGENTS}", patch)


def test_agent_outside_the_pid_namespace_of_its_node_proves_no_end(stage: Stage) -> None:
    """It is never Ready, the end waits as Unknown, and the next agent that sees it ends it."""
    bound = stage.start("unseen", "--memory=1Gi")
    node = bound["nodeName"]
    first = stage.agent(node)
    try:
        set_agents(stage, BLIND)
        where = (f"--namespace={AGENTS}", f"--field-selector=spec.nodeName={node}")
        stage.kubectl("delete", "pod", *where)
        wait_until(
            lambda: _runs_anew(stage.agent(node), first),
            timeout=SECONDS,
            what="the blind agent to run",
            period=PERIOD,
        )
        stage.ask_to_end("unseen")
        stage.wait_condition("unseen", "GPUReleased", "Unknown NotObservable")
        doubt = condition(stage.status("unseen"), "GPUReleased")["message"]
        blind = stage.agent(node)
    finally:
        set_agents(stage, SEEING)
        installation.wait_rolled_out(stage.cluster)
    ended = stage.wait_phase("unseen", "Destroyed")

    assert not blind["ready"]
    assert "hostPID" in doubt
    assert ended["release"]["verdict"] == "Freed"
    assert outside.living(bound["podUID"]) == []


def _runs_anew(agent: Object, first: Object) -> bool:
    """Whether it passed its startup probe: from then on it could be Ready."""
    return bool(agent.get("started")) and agent["containerID"] != first["containerID"]
