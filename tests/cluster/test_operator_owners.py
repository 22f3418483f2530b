"""Pods that somebody else makes anew: the end of a Session is the end of one Pod, by its uid."""

import json

import pytest
from tests.cluster import outside
from tests.cluster.stage import PERIOD, SECONDS, Object, Stage, pod, session
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


def test_pod_of_a_deployment_is_ended_and_its_successor_left_alone(stage: Stage) -> None:
    """DeletePod ends the Pod that was bound; the Deployment's next one has another uid."""
    stage.apply(deployment("served", "--memory=1Gi"))
    first = wait_for_pod(stage, "served")["metadata"]
    stage.apply(session("served", pod=first["name"]))
    stage.wait_phase("served", "Active")

    ended = stage.close("served")

    assert (ended["podUID"], ended["release"]["verdict"]) == (first["uid"], "Freed")
    assert outside.living(first["uid"]) == []
    successor = wait_for_pod(stage, "served", not_uid=first["uid"])
    assert outside.living(successor["metadata"]["uid"]) != []
    assert stage.status("served") == ended
