"""The product as it is shipped, on real kubelets: image, manifests, RBAC, probes, real Pods.

Not among the default tests: `pytest tests/cluster`, as root. Everything goes by kubectl; what
is looked at is Kubernetes' own state, and the nodes from outside. After each story nothing of
it lives, and nothing is stuck (stage.py).
"""

import json
import os
import signal
from pathlib import Path

import pytest
from tests.cluster import outside
from tests.cluster.node import GPUS_PER_NODE
from tests.cluster.stage import PERIOD, SECONDS, Stage, pod, session
from tests.support.processes import wait_until

pytestmark = pytest.mark.timeout(180)

GIB = 2**30
MANY = 20
"""More than there are GPUs: some of these Sessions hold memory, the others wait for a GPU."""


def test_delete_returns_when_the_memory_is_free(stage: Stage) -> None:
    """One kubectl delete on a real Pod: no process of it is left, and no finalizer stuck."""
    status = stage.start("chat", "--memory=2Gi")
    assert len(outside.living(status["podUID"])) > 0

    stage.delete("chat")

    assert outside.living(status["podUID"]) == []
    assert len(status["gpuUUIDs"]) == 1


def test_session_knows_its_gpu_before_anything_is_held(stage: Stage) -> None:
    """The agent has it from kubelet's PodResources API, and nobody claims a sight."""
    late = ("--memory=1Gi", "--allocate-after=600", "--ready-first")

    status = stage.start("early", *late)

    given = {gpu for process in outside.living(status["podUID"]) for gpu in _given(process.pid)}
    assert given
    assert set(status["gpuUUIDs"]) == given
    assert not status.get("seenHolding")
    stage.delete("early")


def test_closed_session_keeps_the_evidence_of_its_end(stage: Stage) -> None:
    """Freed, with the bytes that NVML showed before and after."""
    bound = stage.start("notebook", "--memory=3Gi")

    release = stage.close("notebook")["release"]

    assert release["verdict"] == "Freed"
    assert (release["memoryBytesBefore"], release["memoryBytesAfter"]) == (3 * GIB, 0)
    assert outside.living(bound["podUID"]) == []


def test_container_that_crashes_and_restarts_ends_nothing(stage: Stage) -> None:
    """The Pod lives on, and so does its Session."""
    status = stage.start("crash", "--memory=1Gi", "--exit-after=4", "--exit-code=3")

    stage.wait_restarted("crash")

    assert stage.status("crash") == status
    stage.delete("crash")
    assert outside.living(status["podUID"]) == []


def test_container_that_the_kernel_kills_for_memory_ends_nothing(stage: Stage) -> None:
    """Its cgroup's limit is hit and kubelet starts it again; the end that follows is Freed."""
    swelling = pod("swells", "--memory=1Gi", "--swell-after=4")
    swelling["spec"]["containers"][0]["resources"]["limits"]["memory"] = "96Mi"
    bound = stage.start_pod(swelling)

    container = stage.wait_restarted("swells")
    assert container["lastState"]["terminated"]["reason"] == "OOMKilled"
    assert stage.status("swells") == bound
    ended = stage.close("swells")

    assert (ended["reason"], ended["release"]["verdict"]) == ("ExplicitClose", "Freed")
    assert outside.living(bound["podUID"]) == []


def test_pod_that_fails_for_good_ends_its_session(stage: Stage) -> None:
    """Nobody starts its container again, so there is nothing left to keep."""
    bound = stage.start_pod(pod("fails", "--memory=1Gi", restartPolicy="Never"))

    for process in outside.living(bound["podUID"]):
        os.kill(process.pid, signal.SIGKILL)
    ended = stage.wait_phase("fails", "Destroyed")

    assert stage.read("pod", "fails") == {}
    assert (ended["reason"], ended["release"]["verdict"]) == ("PodTerminated", "Freed")
    assert outside.living(bound["podUID"]) == []


def test_unschedulable_pod_keeps_its_session_waiting(stage: Stage) -> None:
    """Nothing is bound, the reason says why, and the end is free."""
    stage.apply(pod("homeless", nodeSelector={"no": "where"}), session("homeless"))

    assert stage.wait_phase("homeless", "Pending")["reason"] == "PodUnscheduled"
    stage.delete("homeless")


def test_namespace_goes_with_twenty_sessions(stage: Stage) -> None:
    """No step of an end needs anything that a terminating namespace refuses."""
    stage.kubectl("create", "namespace", "crowd")
    wait_until(
        lambda: (
            not stage.kubectl("get", "sa", "default", "--namespace=crowd", check=False).returncode
        ),
        timeout=SECONDS,
        what="the ServiceAccount",
        period=PERIOD,
    )
    names = [f"s{number}" for number in range(MANY)]
    members = [o for n in names for o in (pod(n, "--memory=1Gi", grace=2), session(n))]
    stage.apply(*members, namespace="crowd")
    phases = ["Active"] * 2 * GPUS_PER_NODE
    phases += ["Pending"] * (MANY - len(phases))
    wait_until(
        lambda: sorted(_phases(stage, "crowd")) == phases,
        timeout=SECONDS,
        what=f"{MANY} Sessions to be as far as they get",
        period=PERIOD,
    )

    stage.kubectl("delete", "namespace", "crowd", "--timeout=120s")

    assert stage.workloads() == []


def _given(pid: int) -> set[str]:
    """Give the GPUs that kubelet had the device plugin give to a container."""
    for variable in Path(f"/proc/{pid}/environ").read_text().split("\0"):
        name, _, value = variable.partition("=")
        if name == "NVIDIA_VISIBLE_DEVICES":
            return set(value.split(","))
    return set()


def _phases(stage: Stage, namespace: str) -> list[str]:
    found = stage.kubectl("get", "sessions", f"--namespace={namespace}", "--output=json").stdout
    return [o.get("status", {}).get("phase", "") for o in json.loads(found)["items"]]
