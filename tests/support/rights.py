"""Compares what RBAC grants with what the audit log shows to have been used.

The apiserver notes at each request what its authorizers said. The answer's code would not
do: admission, and a namespace that is being deleted, answer 403 as well.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tests.support.audit_log import events


class Right(NamedTuple):
    """One verb on one resource; as granted, no namespace means all and no name any."""

    account: str
    verb: str
    group: str
    resource: str
    """With its subresource, as RBAC writes it: pods/status."""

    namespace: str = ""
    name: str = ""

    def covers(self, used: "Right") -> bool:
        """Tell whether this grant allows that use."""
        return (
            self[:4] == used[:4]
            and self.namespace in {"", used.namespace}
            and self.name in {"", used.name}
        )

    def __str__(self) -> str:
        where = self.namespace or "all"
        resource = ".".join(filter(None, (self.resource, self.group)))
        named = f"/{self.name}" if self.name else ""
        return f"{self.account.rpartition(':')[2]} {self.verb} {resource}{named} in {where}"


def granted(*manifests: Path) -> list[Right]:
    """Give every right that the bindings in these files hand to ServiceAccounts."""
    objects = [o for file in manifests for o in yaml.safe_load_all(file.read_text("utf-8"))]
    roles = {
        (o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]): o["rules"]
        for o in objects
        if o["kind"] in {"Role", "ClusterRole"}
    }
    return [
        Right(_account(subject), *rule)
        for binding in objects
        if binding["kind"] in {"RoleBinding", "ClusterRoleBinding"}
        for subject in binding["subjects"]
        for rule in _rules(binding, roles)
    ]


def used(audit_log: Path, accounts: set[str]) -> tuple[set[Right], set[Right]]:
    """Give what these accounts were allowed to do so far, and what RBAC forbade them."""
    allowed, forbidden = set[Right](), set[Right]()
    for event in events(audit_log):
        target = event.get("objectRef", {})
        if event["user"].get("username") not in accounts or "resource" not in target:
            continue  # somebody else, or discovery and probes, which everybody may read
        decision = event["annotations"]["authorization.k8s.io/decision"]
        (allowed if decision == "allow" else forbidden).add(_use(event, target))
    return allowed, forbidden


def _account(subject: dict[str, str]) -> str:
    assert subject["kind"] == "ServiceAccount"
    return f"system:serviceaccount:{subject['namespace']}:{subject['name']}"


def _rules(
    binding: dict[str, Any], roles: dict[tuple[str, str, str], list[dict[str, Any]]]
) -> Iterator[tuple[str, str, str, str, str]]:
    namespace, role = binding["metadata"].get("namespace", ""), binding["roleRef"]
    home = namespace if role["kind"] == "Role" else ""
    for rule in roles[role["kind"], home, role["name"]]:
        names = rule.get("resourceNames", [""])
        for group, resource, verb, name in product(
            rule["apiGroups"], rule["resources"], rule["verbs"], names
        ):
            yield verb, group, resource, namespace, name


def _use(event: dict[str, Any], target: dict[str, str]) -> Right:
    resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
    return Right(
        account=event["user"]["username"],
        verb=event["verb"],
        group=target.get("apiGroup", ""),
        resource=resource,
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
    )
