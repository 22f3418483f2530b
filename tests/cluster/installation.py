"""The product on the real cluster, installed by the very lines of README; and its upgrade."""

import json
from pathlib import Path

from tests.cluster import readme
from tests.cluster.real_cluster import RealCluster
from tests.support.progress import progress
from tests.support.session_api import MANIFESTS

SYSTEM, AGENTS = "gpusession-system", "gpusession-agents"
WORKLOADS = {
    "daemonset/gpusession-agent": AGENTS,
    "deployment/gpusession-controller": SYSTEM,
    "deployment/gpusession-gateway": SYSTEM,
}

_IMAGE = "localhost/gpusession"
OVERLAY = MANIFESTS / "overlays" / "test-cluster"


def install(cluster: RealCluster) -> None:
    """Install it, and wait until everything is ready."""
    with progress("installing the product"):
        readme.typed(readme.installing())
        wait_rolled_out(cluster)


def upgrade(cluster: RealCluster, folder: Path, *, tag: str) -> None:
    """Roll out the same image under another tag: to kubelet, the next version."""
    for node in cluster.nodes:
        names = (f"{_IMAGE}:dev", f"{_IMAGE}:{tag}")
        cluster.enter(node, "ctr", "--namespace=k8s.io", "images", "tag", "--force", *names)
    up = "/".join([".."] * (len(folder.resolve().parts) - 1))  # kustomize takes no absolute path
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{up}{OVERLAY}"],
        "images": [{"name": _IMAGE, "newTag": tag}],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization), encoding="utf-8")
    cluster.kubectl("apply", f"--kustomize={folder}")
    wait_rolled_out(cluster)


def wait_rolled_out(cluster: RealCluster) -> None:
    """Wait until all of it is there and ready."""
    for what, namespace in WORKLOADS.items():
        cluster.kubectl("rollout", "status", what, f"--namespace={namespace}", "--timeout=120s")
