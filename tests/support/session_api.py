"""Installs the Session API into a cluster: CRD, namespaces, RBAC, admission policies.

A policy is in force some time after it was applied, and no status says when. So it is tried
out, with requests that change nothing, until it refuses what it must refuse.
"""

import subprocess
from typing import Any

import yaml
from tests.support.control_plane import ControlPlane
from tests.support.processes import wait_until
from tests.support.toolchain import REPOSITORY

CRD = REPOSITORY / "crds" / "session.yaml"
MANIFESTS = REPOSITORY / "manifests"
BASE = MANIFESTS / "base"
SAMPLES = MANIFESTS / "samples"
INSTALLED = ("00-namespaces.yaml", "10-rbac.yaml", "11-leader-election.yaml", "20-admission.yaml")

CONTROLLER = "system:serviceaccount:gpusession-system:gpusession-controller"
AGENT = "system:serviceaccount:gpusession-agents:gpusession-agent"
GATEWAY = "system:serviceaccount:gpusession-system:gpusession-gateway"
HUMAN = "ada"
"""A cluster admin by RBAC, but not in the group system:masters."""

FINALIZER = "gpusession.dev/release"
BIND_INTENT = "gpusession.dev/bind-intent"

PROBE = "policy-probe"
"""Namespace, and in it one Pod and one Session, on which the policies are tried out."""


def session(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """Give a Session that everyone may create."""
    return {
        "apiVersion": "gpusession.dev/v1alpha1",
        "kind": "Session",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podRefs": [{"name": name}], **spec},
    }


def pod(name: str, namespace: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """Give a Pod that nobody runs; it names a node so that deleting it takes its grace."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "spec": {
            "nodeName": "nowhere",
            "automountServiceAccountToken": False,
            "containers": [{"name": "only", "image": "none"}],
        },
    }


def create_namespace(plane: ControlPlane, name: str) -> None:
    """Create a namespace and wait for the ServiceAccount without which it admits no Pod."""
    plane.kubectl("create", "namespace", name)
    wait_until(
        lambda: not plane.kubectl("get", "sa", "default", "-n", name, check=False).returncode,
        timeout=30,
        what=f"the default ServiceAccount of {name}",
        period=0.1,
    )


def replication_controller(name: str, namespace: str, *, replicas: int) -> dict[str, Any]:
    """Give the manifest of the plainest owner of Pods."""
    template = {"metadata": {"labels": {"app": name}}, "spec": pod(name, namespace)["spec"]}
    return {
        "apiVersion": "v1",
        "kind": "ReplicationController",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"app": name}, "template": template},
    }


def create(
    plane: ControlPlane, manifest: dict[str, Any], *options: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Create one object as it stands: kubectl apply would drop its nulls."""
    return plane.kubectl("create", "-f", "-", *options, input=yaml.safe_dump(manifest), check=check)


def remove_namespace(plane: ControlPlane, name: str) -> None:
    """Remove a namespace's Sessions at once, finalizers or not, and let the rest follow.

    The cluster outlives a test module, and a controller under test watches all of it.
    """
    here = f"--namespace={name}"
    held = "-o=jsonpath={.items[?(@.metadata.finalizers)].metadata.name}"
    let_go = ("--type=merge", '-p={"metadata":{"finalizers":null}}')
    for each in plane.kubectl("get", "sessions", here, held).stdout.split():
        plane.kubectl("patch", "session", each, here, *let_go)
    plane.kubectl("delete", "sessions", "--all", here)
    plane.kubectl("delete", "pods", "--all", here, "--grace-period=0", "--force")
    plane.kubectl("delete", "namespace", name, "--wait=false")


def install(plane: ControlPlane) -> None:
    """Apply everything and return when the CRD is served and every policy is in force."""
    plane.kubectl("apply", "-f", CRD)
    established = ("wait", "--for=condition=Established", "-f", CRD, "--timeout=30s")
    wait_until(  # kubectl trips over a CRD that has no conditions yet
        lambda: not plane.kubectl(*established, check=False).returncode,
        timeout=30,
        what="the CRD to be established",
        period=0.1,
    )
    for name in INSTALLED:
        plane.kubectl("apply", "-f", BASE / name)
    plane.kubectl(
        *("create", "clusterrolebinding", "human-admin"),
        *("--clusterrole=cluster-admin", f"--user={HUMAN}"),
    )
    create_namespace(plane, PROBE)
    probe = session(PROBE, PROBE)
    probe["metadata"]["finalizers"] = [FINALIZER]
    wait_until(  # discovery lags a little behind Established
        lambda: not create(plane, probe, check=False).returncode,
        timeout=30,
        what="Sessions to be served",
        period=0.1,
    )
    create(plane, pod(PROBE, PROBE))
    create(plane, replication_controller(PROBE, PROBE, replicas=0))
    for what, arguments, manifest in _forbidden():
        wait_until(
            lambda a=arguments, m=manifest: _is_refused(plane, a, m),
            timeout=30,
            what=f"policy {what} to be in force",
            period=0.1,
        )
    remove_namespace(plane, PROBE)


def _forbidden() -> list[tuple[str, tuple[str, ...], dict[str, Any] | None]]:
    """One request per policy that only this policy refuses."""
    foreign = session("other", PROBE, state={"keys": ["foreign"]})
    bound = session("other", PROBE)
    bound["metadata"]["annotations"] = {BIND_INTENT: "node/uid"}
    probe = (PROBE, f"--namespace={PROBE}")
    drop = ("patch", "session", *probe, "--type=merge", '-p={"metadata":{"finalizers":[]}}')
    scale = ("scale", "rc", *probe, "--replicas=2")
    return [
        ("session-state-keys", ("create", "-f", "-"), foreign),
        ("session-annotations", ("create", "-f", "-"), bound),
        ("session-pod-deletion", ("delete", "pod", *probe, f"--as={CONTROLLER}"), None),
        ("session-owner-scaling", (*scale, f"--as={CONTROLLER}"), None),
        ("session-finalizer", (*drop, f"--as={HUMAN}"), None),
    ]


def _is_refused(
    plane: ControlPlane, arguments: tuple[str, ...], manifest: dict[str, Any] | None
) -> bool:
    body = yaml.safe_dump(manifest) if manifest else None
    done = plane.kubectl(*arguments, "--dry-run=server", input=body, check=False)
    return "ValidatingAdmissionPolicy" in done.stderr
