"""The product on the real cluster, installed as README says: image, Secrets, kustomization."""

import json
import subprocess
from pathlib import Path

from tests.cluster.network import address
from tests.cluster.real_cluster import FOLDER, RealCluster
from tests.support import assets
from tests.support.processes import Process
from tests.support.progress import progress
from tests.support.session_api import BASE, MANIFESTS
from tests.support.toolchain import REPOSITORY

SYSTEM, AGENTS = "gpusession-system", "gpusession-agents"
WORKLOADS = {
    "daemonset/gpusession-agent": AGENTS,
    "deployment/gpusession-controller": SYSTEM,
    "deployment/gpusession-gateway": SYSTEM,
}

_IMAGE = "localhost/gpusession"
_REDIS = f"{address(1)}:6379"
_COMPONENTS = ("gpu-nodes", "nvidia-runtime", "cgroup-v1")


def redis(folder: Path) -> Process:
    """Give a Redis in the first node's network, where Pods of both nodes reach it."""
    inside = ["nsenter", f"--net={FOLDER / 'network' / 'node-1'}"]
    host, _, port = _REDIS.partition(":")
    server = [assets.redis_server(), "--bind", host, "--port", port]
    quiet = ["--protected-mode", "no", "--save", "", "--dir", folder]
    return Process([*inside, *server, *quiet], log=folder / "redis.log")


def install(cluster: RealCluster, folder: Path) -> None:
    """Install from the manifests and wait until everything is ready."""
    with progress("installing the product"):
        cluster.kubectl("apply", f"--filename={BASE / '00-namespaces.yaml'}")
        url = f"redis://{_REDIS}"
        secrets = subprocess.run(
            [MANIFESTS / "secrets.sh", "--redis-url", f"{url}/0", "--state-redis-url", f"{url}/1"],
            check=True,
            capture_output=True,
            text=True,
        )
        cluster.kubectl("apply", "--filename=-", input=secrets.stdout)
        _apply(cluster, folder, tag="dev")
        _wait_rolled_out(cluster)


def upgrade(cluster: RealCluster, folder: Path, *, tag: str) -> None:
    """Roll out the same image under another tag: to kubelet, the next version."""
    for node in cluster.nodes:
        names = (f"{_IMAGE}:dev", f"{_IMAGE}:{tag}")
        cluster.enter(node, "ctr", "--namespace=k8s.io", "images", "tag", "--force", *names)
    _apply(cluster, folder, tag=tag)
    _wait_rolled_out(cluster)


def _apply(cluster: RealCluster, folder: Path, *, tag: str) -> None:
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [_from(folder, "manifests")],
        "components": [_from(folder, f"manifests/components/{name}") for name in _COMPONENTS],
        "images": [{"name": _IMAGE, "newTag": tag}],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization), encoding="utf-8")
    cluster.kubectl("apply", f"--kustomize={folder}")


def _wait_rolled_out(cluster: RealCluster) -> None:
    for what, namespace in WORKLOADS.items():
        cluster.kubectl("rollout", "status", what, f"--namespace={namespace}", "--timeout=120s")


def _from(folder: Path, part: str) -> str:
    """Give the relative path that kustomize insists on."""
    up = "/".join([".."] * (len(folder.resolve().parts) - 1))
    return f"{up}{REPOSITORY / part}"
