"""The rights of controller and agent, as a real kube-apiserver grants them."""

import pytest
from tests.support.control_plane import ControlPlane
from tests.support.session_api import AGENT, CONTROLLER


@pytest.mark.parametrize(
    ("user", "verb", "what", "namespace", "may"),
    [
        (CONTROLLER, "patch", "sessions.gpusession.dev/status", "", True),
        (CONTROLLER, "update", "sessions.gpusession.dev", "", False),
        (CONTROLLER, "create", "sessions.gpusession.dev", "", False),
        (CONTROLLER, "delete", "pods", "", True),
        (CONTROLLER, "deletecollection", "pods", "", False),
        (CONTROLLER, "create", "pods/eviction", "", False),
        (CONTROLLER, "patch", "pods", "", False),
        (CONTROLLER, "create", "events", "", True),
        (CONTROLLER, "get", "deployments.apps", "", True),
        (CONTROLLER, "patch", "deployments.apps", "", False),
        (CONTROLLER, "list", "deployments.apps", "", False),
        (CONTROLLER, "patch", "deployments.apps/scale", "", True),
        (CONTROLLER, "patch", "replicationcontrollers/scale", "", True),
        (CONTROLLER, "update", "statefulsets.apps/scale", "", False),
        (CONTROLLER, "get", "secrets", "gpusession-system", False),
        (CONTROLLER, "create", "leases", "default", False),
        (AGENT, "create", "tokenreviews.authentication.k8s.io", "", True),
        (AGENT, "get", "pods", "", True),
        (AGENT, "list", "pods", "", False),
        (AGENT, "delete", "pods", "", False),
        (AGENT, "get", "sessions.gpusession.dev", "", True),
        (AGENT, "list", "sessions.gpusession.dev", "", True),
        (AGENT, "patch", "sessions.gpusession.dev/status", "", False),
    ],
)
def test_accounts_have_the_rights_they_need_and_no_more(
    session_api: ControlPlane, user: str, verb: str, *, what: str, namespace: str, may: bool
) -> None:
    """Controller and agent may do what a comment in the role explains, and nothing else."""
    where = [f"--namespace={namespace}"] if namespace else ["--all-namespaces"]
    resource, _, sub = what.partition("/")
    target = [resource, f"--subresource={sub}"] if sub else [what]

    answer = session_api.kubectl(
        "auth", "can-i", verb, *target, *where, f"--as={user}", check=False
    )

    assert answer.stdout.split()[0] == ("yes" if may else "no")
