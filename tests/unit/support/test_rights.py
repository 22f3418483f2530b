"""What is read out of RBAC manifests, and what out of the audit log."""

import json
from pathlib import Path

import pytest
from tests.support.rights import Right, granted, used

ACCOUNT = "system:serviceaccount:there:robot"
MANIFEST = """\
kind: Role
metadata: {name: one, namespace: here}
rules:
  - {apiGroups: [""], resources: [pods, pods/log], verbs: [get]}
  - {apiGroups: [apps], resources: [deployments], resourceNames: [only], verbs: [patch]}
---
kind: RoleBinding
metadata: {name: one, namespace: here}
roleRef: {kind: Role, name: one}
subjects: [{kind: ServiceAccount, name: robot, namespace: there}]
"""


def line(verb: str, decision: str, code: int) -> str:
    """Give a request of the account as the apiserver logs it."""
    event = {
        "stage": "ResponseComplete",
        "verb": verb,
        "user": {"username": ACCOUNT},
        "objectRef": {"resource": "pods", "namespace": "here", "name": "chat"},
        "responseStatus": {"code": code},
        "annotations": {"authorization.k8s.io/decision": decision},
    }
    return json.dumps(event) + "\n"


def test_a_binding_grants_each_verb_on_each_resource(tmp_path: Path) -> None:
    """A Role counts in its namespace only, and names stay with their resource."""
    file = tmp_path / "rbac.yaml"
    file.write_text(MANIFEST)

    assert granted(file) == [
        Right(ACCOUNT, "get", "", "pods", "here"),
        Right(ACCOUNT, "get", "", "pods/log", "here"),
        Right(ACCOUNT, "patch", "apps", "deployments", "here", "only"),
    ]


def test_what_admission_refuses_was_allowed_by_rbac(tmp_path: Path) -> None:
    """Only the authorizers' own word tells a missing right from a refused write."""
    log = tmp_path / "audit.log"
    log.write_text(line("delete", "allow", 403) + line("patch", "forbid", 403))

    allowed, forbidden = used(log, {ACCOUNT})

    assert [right.verb for right in allowed] == ["delete"]
    assert [right.verb for right in forbidden] == ["patch"]


@pytest.mark.parametrize(
    ("right", "covers"),
    [
        (Right(ACCOUNT, "get", "", "pods"), True),
        (Right(ACCOUNT, "get", "", "pods", "elsewhere"), False),
        (Right(ACCOUNT, "get", "", "pods", "here", "other"), False),
        (Right(ACCOUNT, "get", "", "pods/log"), False),
    ],
    ids=["everywhere", "another namespace", "another name", "a subresource"],
)
def test_a_grant_covers_what_it_names(*, right: Right, covers: bool) -> None:
    """The use is: get Pod chat in namespace here."""
    assert right.covers(Right(ACCOUNT, "get", "", "pods", "here", "chat")) is covers
