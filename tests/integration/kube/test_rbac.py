"""The rights of our accounts and of everybody else, as a real kube-apiserver grants them."""

import json
from itertools import product
from typing import Any

import pytest
from tests.support.control_plane import ControlPlane
from tests.support.processes import wait_until
from tests.support.session_api import AGENT, CONTROLLER, GATEWAY, HUMAN

BYSTANDER = "system:serviceaccount:default:default"
NEIGHBOUR = "system:serviceaccount:gpusession-agents:default"
STRANGER = "mallory"
"""A user who logs in and has no role."""
EDITOR = "bob"
"""A user who may edit one namespace, by Kubernetes' own role."""

SESSIONS = "sessions.gpusession.dev"
BINDINGS = "clusterrolebindings.rbac.authorization.k8s.io"
ROLES = "clusterroles.rbac.authorization.k8s.io"
POLICIES = "validatingadmissionpolicies.admissionregistration.k8s.io"
LEASES = "leases.coordination.k8s.io"
TOKEN = f"create {SESSIONS}/token"

TO_NOBODY_OF_OURS = [
    "get secrets",
    "list secrets",
    "get configmaps",
    "create pods",
    "update pods",
    "patch pods",
    "deletecollection pods",
    "create pods/exec",
    "get pods/exec",
    "create pods/attach",
    "create pods/eviction",
    "update pods/ephemeralcontainers",
    "patch nodes",
    "delete nodes",
    "get nodes/proxy",
    "create serviceaccounts/token",
    "impersonate users",
    "impersonate serviceaccounts",
    f"create {SESSIONS}",
    f"update {SESSIONS}",
    f"deletecollection {SESSIONS}",
    f"create {BINDINGS}",
    f"escalate {ROLES}",
    f"bind {ROLES}",
    f"delete {POLICIES}",
    f"delete {LEASES}",
    "delete customresourcedefinitions.apiextensions.k8s.io",
    "delete namespaces",
]
"""What would turn a lost token into a lost cluster, or let the operator forge its own input."""

NOT_TO_THE_AGENT = [
    "list pods",
    "watch pods",
    "delete pods",
    "get nodes",
    "create events",
    f"watch {SESSIONS}",
    f"patch {SESSIONS}",
    f"patch {SESSIONS}/status",
    f"delete {SESSIONS}",
    f"get {LEASES}",
]
"""A token stolen from one node ends no Session and finds no Pod that it cannot name."""

NOT_TO_THE_GATEWAY = [
    *NOT_TO_THE_AGENT,
    "get pods",
    f"get {SESSIONS}",
    f"list {SESSIONS}",
    TOKEN,
]
"""What strangers talk to reads nothing in the API, and asks two questions."""

NOT_TO_THE_CONTROLLER = [
    f"create {LEASES}",
    f"update {LEASES}",
    f"patch {LEASES}",
    "create tokenreviews.authentication.k8s.io",
    "get events",
    "delete events",
    "list deployments.apps",
    "patch deployments.apps",
    "update statefulsets.apps/scale",
]
"""Its Lease is one, in its own namespace; its Events are only ever created."""

TO_OTHERS = [
    f"list {SESSIONS}",
    f"delete {SESSIONS}",
    f"patch {SESSIONS}/status",
    "delete pods",
    "get secrets",
    "create tokenreviews.authentication.k8s.io",
    f"update {LEASES}",
    TOKEN,
]
"""What an installation must not hand to whoever happens to be there."""


NEEDED = [
    (CONTROLLER, f"patch {SESSIONS}/status", ""),
    (CONTROLLER, "delete pods", ""),
    (CONTROLLER, "create events", ""),
    (CONTROLLER, "patch deployments.apps/scale", ""),
    (AGENT, "create tokenreviews.authentication.k8s.io", ""),
    (AGENT, "get pods", ""),
    (AGENT, f"get {SESSIONS}", ""),
    (AGENT, f"list {SESSIONS}", ""),
    (GATEWAY, "create tokenreviews.authentication.k8s.io", ""),
    (GATEWAY, "create subjectaccessreviews.authorization.k8s.io", ""),
    (EDITOR, TOKEN, "default"),
    (EDITOR, f"delete {SESSIONS}/token", "default"),
    (HUMAN, "impersonate users", ""),
    (HUMAN, "create pods/exec", "gpusession-system"),
]
"""The control of all that is refused: the question itself can be answered with yes."""

OURS, OTHERS = (CONTROLLER, AGENT, GATEWAY), (BYSTANDER, NEIGHBOUR, STRANGER)
BEYOND = [
    *((user, right, "") for user, right in product(OURS, TO_NOBODY_OF_OURS)),
    *((user, right, user.split(":")[2]) for user, right in product(OURS, TO_NOBODY_OF_OURS)),
    *((AGENT, right, "") for right in NOT_TO_THE_AGENT),
    *((GATEWAY, right, "") for right in NOT_TO_THE_GATEWAY),
    *((GATEWAY, right, "gpusession-system") for right in NOT_TO_THE_GATEWAY),
    (EDITOR, TOKEN, "gpusession-agents"),
    *((CONTROLLER, right, "default") for right in NOT_TO_THE_CONTROLLER),
    *product(OTHERS, TO_OTHERS, ("default", "gpusession-agents")),
]
"""Nowhere, and not at home either."""

Question = tuple[str, str, str]


def review(user: str, right: str, namespace: str) -> dict[str, Any]:
    """Give the SubjectAccessReview that asks it; no namespace means all."""
    verb, _, what = right.partition(" ")
    full, _, sub = what.partition("/")
    resource, _, group = full.partition(".")
    asked = {"verb": verb, "group": group, "resource": resource, "namespace": namespace}
    groups = ["system:authenticated"]
    if user.startswith("system:serviceaccount:"):
        groups += ["system:serviceaccounts", f"system:serviceaccounts:{user.split(':')[2]}"]
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user,
            "groups": groups,
            "resourceAttributes": asked | ({"subresource": sub} if sub else {}),
        },
    }


@pytest.fixture(scope="module")
def answers(session_api: ControlPlane) -> dict[Question, str]:
    """Ask everything at once: a kubectl for each question would take minutes."""
    binding = ("rolebinding", "edits", "--clusterrole=edit", f"--user={EDITOR}", "-n", "default")
    session_api.kubectl("create", *binding)
    wait_until(
        lambda: _asked(session_api, [(EDITOR, TOKEN, "default")]) == ["true"],
        timeout=30,
        what="the aggregation of gpusession-client into edit",
        period=0.2,
    )
    questions = [*NEEDED, *BEYOND]
    return dict(zip(questions, _asked(session_api, questions), strict=True))


def _asked(plane: ControlPlane, questions: list[Question]) -> list[str]:
    asked = {"apiVersion": "v1", "kind": "List", "items": [review(*each) for each in questions]}
    told = plane.kubectl(
        *("create", "-f", "-", "-o", "jsonpath={.status.allowed} "), input=json.dumps(asked)
    )
    return told.stdout.split()


@pytest.mark.parametrize("question", NEEDED, ids=" ".join)
def test_who_needs_a_right_has_it(answers: dict[Question, str], question: Question) -> None:
    """What a comment in the role explains, the account may do."""
    assert answers[question] == "true"


@pytest.mark.parametrize("question", BEYOND, ids=" ".join)
def test_nobody_has_a_right_beyond_their_work(
    answers: dict[Question, str], question: Question
) -> None:
    """Neither our accounts, nor who happens to be in the cluster beside them."""
    assert answers[question] == "false"
