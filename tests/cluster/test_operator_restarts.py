"""The product's own processes come and go, one by one or all in an upgrade; no end is lost."""

from pathlib import Path

import pytest
from tests.cluster import installation, outside
from tests.cluster.installation import AGENTS, SYSTEM
from tests.cluster.stage import PERIOD, Stage, pod, session
from tests.support.processes import wait_until

pytestmark = pytest.mark.timeout(180)


def test_agent_pod_that_is_deleted_in_mid_release_is_followed(stage: Stage) -> None:
    """The DaemonSet's next agent goes on from the ledger on the node's disk."""
    slow = {"terminationGracePeriodSeconds": 5}
    status = stage.start("stubborn", "--memory=1Gi", "--ignore-sigterm", **slow)
    stage.kubectl("delete", "session", "stubborn", "--wait=false")
    stage.wait_phase("stubborn", "PendingDestroy")

    node = f"--field-selector=spec.nodeName={status['nodeName']}"
    stage.kubectl("delete", "pod", f"--namespace={AGENTS}", node, "--grace-period=1")

    wait_until(
        lambda: not stage.status("stubborn"), timeout=120, what="stubborn to go", period=PERIOD
    )
    assert outside.living(status["podUID"]) == []


def test_leader_that_is_deleted_is_followed(stage: Stage) -> None:
    """The other replica takes the Lease and ends what is asked of it."""
    status = stage.start("heir", "--memory=1Gi")
    holder = stage.kubectl(
        *("get", "lease", "gpusession-controller", f"--namespace={SYSTEM}"),
        "--output=jsonpath={.spec.holderIdentity}",
    ).stdout
    stage.kubectl("delete", "pod", holder, f"--namespace={SYSTEM}", "--wait=false")

    stage.delete("heir")

    assert outside.living(status["podUID"]) == []


def test_upgrade_meets_sessions_in_every_phase(stage: Stage, product: Path) -> None:
    """One waits on, one lives on untouched, one goes on ending, one stays ended: each once."""
    stage.apply(pod("waits", nodeSelector={"no": "where"}), session("waits"))
    lives = stage.start("lives", "--memory=1Gi")
    untouched = outside.living(lives["podUID"])
    stage.start("ended", "--memory=1Gi")
    ended = stage.close("ended")
    slow = {"terminationGracePeriodSeconds": 15}
    ends = stage.start("ends", "--memory=1Gi", "--ignore-sigterm", **slow)
    stage.ask_to_end("ends")
    stage.wait_phase("ends", "PendingDestroy")

    installation.upgrade(stage.cluster, product, tag="next")

    assert stage.wait_phase("ends", "Destroyed")["release"]["verdict"] == "Freed"
    assert outside.living(ends["podUID"]) == []
    assert (stage.status("lives"), outside.living(lives["podUID"])) == (lives, untouched)
    assert (stage.status("waits")["phase"], stage.status("ended")) == ("Pending", ended)
    assert [stage.ends_told(name) for name in ("waits", "lives", "ended", "ends")] == [0, 0, 1, 1]
