"""Component cert-manager: whom its authority can sign for, and how the controller learns of it."""

import os
import re
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.assets import kubernetes_assets
from tests.support.control_plane import ControlPlane
from tests.support.processes import wait_until
from tests.support.session_api import create, create_namespace, remove_namespace
from tests.support.toolchain import REPOSITORY

from gpusession.settings import ControllerSettings

Object = dict[str, Any]
Render = Callable[..., list[Object]]

SYSTEM, AGENTS = "gpusession-system", "gpusession-agents"
TENANT, HOME = "tenant-of-cert-manager", "tenants-home"
REQUESTS = ("certificates", "certificaterequests")

CERT_MANAGER_EDIT: Object = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {
        "name": "cert-manager-edit",
        "labels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"},
    },
    "rules": [
        {
            "apiGroups": ["cert-manager.io"],
            "resources": ["certificates", "certificaterequests", "issuers"],
            "verbs": ["create", "delete", "deletecollection", "patch", "update"],
        }
    ],
}
"""What an installation of cert-manager adds to everybody's `edit`."""


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Find all objects of a kind."""
    return [each for each in objects if each["kind"] == kind]


def test_its_certificate_is_the_secret_that_agents_mount(kustomized: Render) -> None:
    """Secret, namespace and DNS name agree with what agent and controller expect."""
    objects = kustomized("cert-manager")
    (agents,) = of_kind(objects, "DaemonSet")
    volumes = agents["spec"]["template"]["spec"]["volumes"]
    (mounted,) = [each["secret"]["secretName"] for each in volumes if "secret" in each]

    (made,) = [c for c in of_kind(objects, "Certificate") if c["spec"]["secretName"] == mounted]

    assert made["metadata"]["namespace"] == agents["metadata"]["namespace"] == AGENTS
    assert made["spec"]["dnsNames"] == [ControllerSettings().agent_server_name]


def test_nothing_that_signs_reaches_beyond_the_agents_namespace(kustomized: Render) -> None:
    """cert-manager takes an Issuer for requests of its own namespace only."""
    objects = kustomized("cert-manager")
    issuers, certificates = of_kind(objects, "Issuer"), of_kind(objects, "Certificate")
    names = {each["metadata"]["name"] for each in issuers}

    assert not of_kind(objects, "ClusterIssuer")
    assert {each["metadata"]["namespace"] for each in issuers + certificates} == {AGENTS}
    for certificate in certificates:
        asked = certificate["spec"]["issuerRef"]
        assert asked["kind"] == "Issuer"
        assert asked["name"] in names


@pytest.fixture
def tenant(session_api: ControlPlane) -> Iterator[ControlPlane]:
    """Give a user who may edit one namespace, in a cluster that has cert-manager's roles."""
    create_namespace(session_api, HOME)
    session_api.kubectl("apply", "-f", "-", input=yaml.safe_dump(CERT_MANAGER_EDIT))
    session_api.kubectl(
        *("create", "rolebinding", TENANT, f"--namespace={HOME}"),
        *("--clusterrole=edit", f"--user={TENANT}"),
    )
    yield session_api
    session_api.kubectl("delete", "clusterrole", CERT_MANAGER_EDIT["metadata"]["name"])
    remove_namespace(session_api, HOME)


def test_a_tenant_can_ask_for_certificates_at_home_alone(tenant: ControlPlane) -> None:
    """With every right of `edit` there, and so with none where our Issuers are."""

    def may(resource: str, namespace: str) -> bool:
        wanted = {"group": "cert-manager.io", "verb": "create", "resource": resource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": TENANT, "resourceAttributes": wanted | {"namespace": namespace}},
        }
        answer = create(tenant, review, "-o=jsonpath={.status.allowed}")
        return answer.stdout == "true"

    wait_until(
        lambda: all(may(each, HOME) for each in REQUESTS),
        timeout=30,
        what="cert-manager's rights to be part of edit",
        period=0.2,
    )

    assert not any(may(each, AGENTS) for each in REQUESTS)


def authority(certificate: str) -> Object:
    """Give the Secret that cert-manager keeps for the authority."""
    parts = {"tls.crt": certificate, "tls.key": "never", "ca.crt": certificate}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "gpusession-authority", "namespace": AGENTS},
        "type": "kubernetes.io/tls",
        "data": {key: b64encode(part.encode()).decode() for key, part in parts.items()},
    }


def test_the_documented_command_brings_the_authority_to_the_controller(
    session_api: ControlPlane, tmp_path: Path
) -> None:
    """Only the certificate is copied, never the key beside it; and again after a renewal."""
    page = (REPOSITORY / "docs" / "install.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^kubectl get secret .*(?:\n  .*)*$", page, re.MULTILINE)
    path = f"{kubernetes_assets()}{os.pathsep}{os.environ['PATH']}"
    own = {"KUBECONFIG": str(session_api.admin_kubeconfig), "HOME": str(tmp_path), "PATH": path}
    kubectl = session_api.kubectl
    try:
        for certificate in ("first", "renewed"):
            kubectl("apply", "-f", "-", input=yaml.safe_dump(authority(certificate)))

            subprocess.run(["sh", "-ec", command], check=True, env=os.environ | own)

            found = kubectl("get", "secret", "gpusession-agent-ca", "-n", SYSTEM, "-o=yaml").stdout
            assert yaml.safe_load(found)["data"] == {
                "ca.crt": b64encode(certificate.encode()).decode()
            }
    finally:
        for name, namespace in (("gpusession-authority", AGENTS), ("gpusession-agent-ca", SYSTEM)):
            kubectl("delete", "secret", name, "-n", namespace, "--ignore-not-found")
