"""The policy on the controller's Pod deletions, as a real kube-apiserver enforces it."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.control_plane import ControlPlane
from tests.support.session_api import (
    CONTROLLER,
    HUMAN,
    create,
    create_namespace,
    pod,
    remove_namespace,
)

NAMESPACE = "pod-deletion"
EXCLUSIVE = {"gpusession.dev/use": "exclusive"}


@pytest.fixture(scope="module")
def plane(session_api: ControlPlane) -> Iterator[ControlPlane]:
    """Give the cluster with a namespace for this module."""
    create_namespace(session_api, NAMESPACE)
    yield session_api
    remove_namespace(session_api, NAMESPACE)


def delete_pod(
    plane: ControlPlane, name: str, user: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Delete a Pod with full DeleteOptions, as the controller does."""
    body = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}"
    return plane.kubectl(
        *("delete", f"--raw={path}", "-f", "-", f"--as={user}"),
        input=json.dumps(body),
        check=False,
    )


def make_pod(plane: ControlPlane, name: str, labels: dict[str, str]) -> str:
    """Create a Pod and give its UID."""
    create(plane, pod(name, NAMESPACE, labels))
    got = plane.kubectl("get", "pod", name, "-n", NAMESPACE, "-o", "jsonpath={.metadata.uid}")
    return got.stdout


def test_controller_deletes_a_consenting_pod_by_uid(plane: ControlPlane) -> None:
    """With the label and the uid, the controller's delete passes and leaves the Pod its grace."""
    uid = make_pod(plane, "consents", EXCLUSIVE)

    answer = delete_pod(plane, "consents", CONTROLLER, preconditions={"uid": uid})

    assert json.loads(answer.stdout)["metadata"]["deletionGracePeriodSeconds"] == 30


@pytest.mark.parametrize("use", [None, "shared"])
def test_controller_cannot_delete_a_pod_without_consent(
    plane: ControlPlane, use: str | None
) -> None:
    """A Pod that is not exclusive is safe from the controller."""
    name = f"no-consent-{use}".lower()
    uid = make_pod(plane, name, {"gpusession.dev/use": use} if use else {})

    answer = delete_pod(plane, name, CONTROLLER, preconditions={"uid": uid})

    assert f'label Pod "{name}" with gpusession.dev/use=exclusive' in answer.stderr


def test_controller_cannot_delete_a_pod_without_its_uid(plane: ControlPlane) -> None:
    """A delete by name alone could hit a new Pod and is refused."""
    make_pod(plane, "by-name", EXCLUSIVE)

    answer = delete_pod(plane, "by-name", CONTROLLER)

    assert "may delete a Pod only with preconditions.uid set" in answer.stderr


@pytest.mark.parametrize("terminating", [False, True], ids=["running", "terminating"])
def test_controller_cannot_delete_a_pod_at_once(plane: ControlPlane, *, terminating: bool) -> None:
    """Grace 0 would remove the object while processes run; not even the second time."""
    name = f"at-once-{terminating}".lower()
    uid = make_pod(plane, name, EXCLUSIVE)
    if terminating:
        delete_pod(plane, name, CONTROLLER, preconditions={"uid": uid})

    answer = delete_pod(plane, name, CONTROLLER, preconditions={"uid": uid}, gracePeriodSeconds=0)

    assert "may not delete a Pod with gracePeriodSeconds 0" in answer.stderr


def test_others_delete_pods_as_ever(plane: ControlPlane) -> None:
    """The policy binds the controller only."""
    make_pod(plane, "anyones", {})

    answer = delete_pod(plane, "anyones", HUMAN, gracePeriodSeconds=0)

    assert answer.returncode == 0


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_controller_deletes_a_pod_that_has_ended(plane: ControlPlane, phase: str) -> None:
    """The apiserver itself takes the grace from it, and nothing in it is left to outlive it."""
    name = f"ended-{phase}".lower()
    uid = make_pod(plane, name, EXCLUSIVE)
    plane.kubectl(
        *("patch", "pod", name, "-n", NAMESPACE, "--subresource=status", "--type=merge"),
        *("-p", json.dumps({"status": {"phase": phase}})),
    )

    answer = delete_pod(plane, name, CONTROLLER, preconditions={"uid": uid}, gracePeriodSeconds=1)

    assert answer.returncode == 0, answer.stderr
