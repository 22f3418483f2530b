"""The control plane that tests and demo run against behaves as a cluster's does."""

import json
import ssl
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.support import kubeconfig
from tests.support.control_plane import ControlPlane
from tests.support.processes import wait_until

NAMESPACE = '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "support-"}}'


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """Give a namespace of the test's own, with its default ServiceAccount."""
    made = control_plane.kubectl(
        "create", "--filename=-", "--output=name", input=NAMESPACE
    ).stdout.strip()
    name = made.removeprefix("namespace/")
    wait_until(
        lambda: (
            not control_plane.kubectl(
                "get", "serviceaccount", "default", f"--namespace={name}", check=False
            ).returncode
        ),
        timeout=20,
        what="the default ServiceAccount",
    )
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")


def test_service_account_kubeconfig_authenticates_as_it(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """The written kubeconfig stands for exactly that ServiceAccount."""
    config = control_plane.kubeconfig_for_service_account(namespace, "default", tmp_path)

    who = control_plane.kubectl("auth", "whoami", "--output=json", kubeconfig=config)

    user = json.loads(who.stdout)["status"]["userInfo"]["username"]
    assert user == f"system:serviceaccount:{namespace}:default"


def test_rbac_denies_what_was_not_granted(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """A ServiceAccount without a role reads no Secret."""
    config = control_plane.kubeconfig_for_service_account(namespace, "default", tmp_path)

    denied = control_plane.kubectl("get", "secrets", kubeconfig=config, check=False)

    assert "Forbidden" in denied.stderr


def test_audience_bound_token_is_confirmed_for_its_audience(
    control_plane: ControlPlane, namespace: str
) -> None:
    """TokenReview answers with the audience that the token was made for."""
    token = control_plane.service_account_token(namespace, "default", "gpusession-agent")
    spec = {"token": token.read_text(), "audiences": ["gpusession-agent", "another"]}
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}

    done = control_plane.kubectl(
        "create", "--filename=-", "--output=json", input=json.dumps(review)
    )

    assert json.loads(done.stdout)["status"]["audiences"] == ["gpusession-agent"]


def test_audience_bound_token_does_not_open_the_apiserver(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """Whoever steals the agent's token from the wire gets no cluster with it."""
    config = kubeconfig.by_token_file(
        tmp_path / "config",
        server=control_plane.server,
        ca_file=control_plane.ca_file,
        token_file=control_plane.service_account_token(namespace, "default", "gpusession-agent"),
        namespace=namespace,
    )

    refused = control_plane.kubectl("get", "--raw=/version", kubeconfig=config, check=False)

    assert "Unauthorized" in refused.stderr


def test_audit_log_counts_exactly_the_writes_done(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """Two writes by one user are two requests, the refused one with its code."""
    config = control_plane.kubeconfig_for_service_account(namespace, "default", tmp_path)
    for name in ("first", "second"):
        control_plane.kubectl("create", "configmap", name, kubeconfig=config, check=False)

    def written() -> list[tuple[str, str, int]]:
        user = f"system:serviceaccount:{namespace}:default"
        requests = control_plane.mutating_requests()
        return [(each.verb, each.resource, each.code) for each in requests if each.user == user]

    wait_until(lambda: len(written()) >= 2, timeout=5, what="the audit log")
    assert written() == [("create", "configmaps", 403), ("create", "configmaps", 403)]


def test_anonymous_callers_are_turned_away(control_plane: ControlPlane) -> None:
    """Without a credential even the version of the apiserver is not told."""
    address = urlsplit(control_plane.server)
    trust = ssl.create_default_context(cafile=control_plane.ca_file)

    with closing(HTTPSConnection(address.hostname, address.port, context=trust)) as connection:
        connection.request("GET", "/version")
        answer = connection.getresponse()

    assert answer.status == 401


def test_owned_objects_go_with_their_owner(control_plane: ControlPlane, namespace: str) -> None:
    """The controller manager's garbage collection runs."""
    here = f"--namespace={namespace}"
    control_plane.kubectl("create", "configmap", "owner", here)
    uid = control_plane.kubectl(
        "get", "configmap", "owner", here, "--output=jsonpath={.metadata.uid}"
    )
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid.stdout}
    metadata = {"name": "owned", "ownerReferences": [owner]}
    owned = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    control_plane.kubectl("create", here, "--filename=-", input=owned)

    control_plane.kubectl("delete", "configmap", "owner", here)

    control_plane.kubectl("wait", "--for=delete", "configmap/owned", here, "--timeout=10s")


@pytest.fixture
def second() -> Iterator[ControlPlane]:
    """Give another cluster; a fixture, since a busy machine may need long to start it."""
    with ControlPlane() as plane:
        yield plane


def test_second_control_plane_runs_beside_the_first(
    control_plane: ControlPlane, second: ControlPlane
) -> None:
    """Two clusters share nothing, and a stopped one leaves nothing behind."""
    second.kubectl("create", "namespace", "only-here")

    missing = control_plane.kubectl("get", "namespace", "only-here", check=False)
    second.stop()

    assert "NotFound" in missing.stderr
    assert not second.workdir.exists()
