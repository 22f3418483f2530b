"""Pods that somebody else makes anew: the end of a Session is the end of one Pod, by its uid."""

import json

import pytest
from tests.cluster import outside
from tests.cluster.stage import PERIOD, SECONDS, Object, Stage, condition, pod, session
from tests.support.processes import wait_until

pytestmark = pytest.mark.timeout(180)


def deployment(name: str, *arguments: str) -> Object:
    """Describe a Deployment of one Pod of the workload image."""
    template = pod(name, *arguments)
    labels = template["metadata"]["labels"] | {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": labels}, "spec": template["spec"]},
        },
    }


def wait_for_pod(stage: Stage, app: str, *, not_uid: str = "") -> Object:
    """Wait until a Pod of an app, other than the one known, holds its memory."""

    def found() -> list[Object]:
        pods = stage.kubectl("get", "pods", f"--selector=app={app}", "--output=json").stdout
        return [o for o in json.loads(pods)["items"] if o["metadata"]["uid"] != not_uid]

    wait_until(found, timeout=SECONDS, what=f"a Pod of {app}", period=PERIOD)
    [only] = found()
    stage.wait_holding(only["metadata"]["name"])
    return only


def start(stage: Stage, name: str, on_release: str) -> Object:
    """Start a Deployment and bind a Session to its Pod; give the Pod's metadata."""
    stage.apply(deployment(name, "--memory=1Gi"))
    metadata: Object = wait_for_pod(stage, name)["metadata"]
    bound = session(name, pod=metadata["name"])
    bound["spec"]["podRefs"][0]["onRelease"] = on_release
    stage.apply(bound)
    stage.wait_phase(name, "Active")
    return metadata


def test_pod_of_a_deployment_is_ended_and_its_successor_left_alone(stage: Stage) -> None:
    """DeletePod ends the Pod that was bound; the next one, of which it was warned, lives."""
    first = start(stage, "served", "DeletePod")
    warned = condition(stage.status("served"), "OwnerWillRecreate")
    assert (warned["status"], warned["reason"]) == ("True", "OwnedByReplicaSet")

    ended = stage.close("served")

    assert (ended["podUID"], ended["release"]["verdict"]) == (first["uid"], "Freed")
    assert outside.living(first["uid"]) == []
    successor = wait_for_pod(stage, "served", not_uid=first["uid"])
    assert outside.living(successor["metadata"]["uid"]) != []
    assert stage.status("served") == ended


def test_scaled_deployment_stays_down_with_its_session(stage: Stage) -> None:
    """ScaleOwner takes the replica away first: no Pod comes back, and nothing runs."""
    first = start(stage, "scaled", "ScaleOwner")

    ended = stage.close("scaled")

    assert (ended["podUID"], ended["release"]["verdict"]) == (first["uid"], "Freed")
    assert condition(ended, "OwnerWillRecreate")["reason"] == "OwnerScaled"
    assert stage.read("deployment", "scaled")["spec"]["replicas"] == 0
    assert stage.workloads() == []
