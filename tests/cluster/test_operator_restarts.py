"""The product's own processes come and go, one by one or all in an upgrade; no end is lost."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.cluster import installation, outside
from tests.cluster.installation import AGENTS, SYSTEM
from tests.cluster.stage import PERIOD, SECONDS, Object, Stage, pod, session
from tests.support.processes import wait_until

pytestmark = pytest.mark.timeout(300)


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
    """The other replica takes the Lease, and ends what the first one had bound."""
    first = stage.start("first", "--memory=1Gi")
    before = stage.lease()
    leader = ("pod", before["holderIdentity"], f"--namespace={SYSTEM}")
    stage.kubectl("delete", *leader, "--wait=false")

    after = next_reign(stage, before)
    second = stage.start("second", "--memory=1Gi")
    stage.delete("first")

    assert after["holderIdentity"] != before["holderIdentity"]
    assert second["leaderEpoch"] > first["leaderEpoch"]
    assert outside.living(first["podUID"]) == []


def test_leader_that_is_killed_in_mid_release_is_followed(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its own next life or the other replica: the end goes on, and is told once.

    SIGKILL comes from the machine, so that neither kubelet nor the process can prepare for it.
    """
    slow = {"terminationGracePeriodSeconds": 5}
    bound = stage.start("pursued", "--memory=1Gi", "--ignore-sigterm", **slow)
    before, pid = stage.lease(), process_of_leader(stage)
    stage.ask_to_end("pursued")
    stage.wait_phase("pursued", "PendingDestroy")

    os.kill(pid, signal.SIGKILL)
    next_reign(stage, before, told=capsys)
    ended = stage.wait_phase("pursued", "Destroyed")

    assert ended["release"]["verdict"] == "Freed"
    assert ended["leaderEpoch"] > bound["leaderEpoch"]
    assert stage.ends_told("pursued") == 1
    assert outside.living(bound["podUID"]) == []


def test_leader_that_is_frozen_is_followed_by_the_other_replica(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """When it wakes up it is deposed: it writes nothing more, and stands by in its next life."""
    stage.expect_logged("the Lease was last renewed")  # its last words, as it finds out
    bound = stage.start("heir", "--memory=1Gi")
    before, pid = stage.lease(), process_of_leader(stage)

    os.kill(pid, signal.SIGSTOP)
    try:
        after = next_reign(stage, before, told=capsys)
        stage.ask_to_end("heir")
        ended = stage.wait_phase("heir", "Destroyed")
    finally:
        with suppress(ProcessLookupError):  # its liveness probe may have been faster
            os.kill(pid, signal.SIGCONT)

    assert after["holderIdentity"] != before["holderIdentity"]
    assert ended["release"]["verdict"] == "Freed"
    assert ended["leaderEpoch"] > bound["leaderEpoch"]
    assert stage.ends_told("heir") == 1
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout=SECONDS, what="its end")
    assert stage.status("heir") == ended


def process_of_leader(stage: Stage) -> int:
    """Find the leading controller among the machine's own processes."""
    uid = stage.leader()["metadata"]["uid"]
    (process,) = outside.living(uid)
    return process.pid


def next_reign(
    stage: Stage, before: Object, *, told: pytest.CaptureFixture[str] | None = None
) -> Object:
    """Wait until somebody leads anew; give the Lease, and tell how long it took.

    15 s are the design's figure. A busy machine may take longer; a wedge takes for ever.
    """
    began_at = time.monotonic()

    def begun() -> bool:
        now = stage.lease()
        return bool(now["holderIdentity"]) and now["leaseTransitions"] > before["leaseTransitions"]

    wait_until(begun, timeout=120, what="the next reign", period=PERIOD)
    after = stage.lease()
    if told is not None:
        took, same = time.monotonic() - began_at, before["holderIdentity"]
        who = "its own next life" if after["holderIdentity"] == same else "the other replica"
        with told.disabled():
            print(f"\n[gpusession] followed after {took:.1f} s by {who}")
    return after


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
