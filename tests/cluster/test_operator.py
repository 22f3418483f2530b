"""The product as it is shipped, on real kubelets: image, manifests, RBAC, probes, real Pods.

Not among the default tests: `pytest tests/cluster`, as root. Everything goes by kubectl; what
is looked at is Kubernetes' own state, and the nodes' processes from outside.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import packages
from tests.cluster.images import WORKLOAD
from tests.cluster.network import address
from tests.cluster.real_cluster import FOLDER, RealCluster
from tests.support import assets
from tests.support.image import DEBIAN, archive_of, build_image
from tests.support.processes import Process, wait_until
from tests.support.session_api import MANIFESTS
from tests.support.toolchain import REPOSITORY, AssetMissingError

pytestmark = pytest.mark.timeout(180)

SYSTEM, AGENTS = "gpusession-system", "gpusession-agents"
REDIS_PORT = 6379
SECONDS = 60.0
"""A guard against hanging, not a figure."""

COMPONENTS = ("gpu-nodes", "nvidia-runtime", "cgroup-v1")
Object = dict[str, Any]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """Give the machine's cluster with the product on it, installed as README says."""
    try:
        packages.require()
    except AssetMissingError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("operator")
    image = archive_of(build_image(DEBIAN), folder / "gpusession.tar")
    with RealCluster() as cluster, _redis(folder):
        cluster.load_image(image)
        _install(cluster, folder)
        yield cluster


def _redis(folder: Path) -> Process:
    """Give a Redis in the first node's network, where Pods of both nodes reach it."""
    inside = ["nsenter", f"--net={FOLDER / 'network' / 'node-1'}"]
    server = [assets.redis_server(), "--bind", address(1), "--port", str(REDIS_PORT)]
    quiet = ["--protected-mode", "no", "--save", "", "--dir", folder]
    return Process([*inside, *server, *quiet], log=folder / "redis.log")


def _install(cluster: RealCluster, folder: Path) -> None:
    url = f"redis://{address(1)}:{REDIS_PORT}"
    cluster.kubectl("apply", f"--filename={MANIFESTS / '00-namespaces.yaml'}")
    secrets = subprocess.run(
        [MANIFESTS / "secrets.sh", "--redis-url", f"{url}/0", "--state-redis-url", f"{url}/1"],
        check=True,
        capture_output=True,
        text=True,
    )
    cluster.kubectl("apply", "--filename=-", input=secrets.stdout)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [_from(folder, "manifests")],
        "components": [_from(folder, f"manifests/components/{name}") for name in COMPONENTS],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    cluster.kubectl("apply", f"--kustomize={folder}")
    for what, namespace in (
        ("daemonset/gpusession-agent", AGENTS),
        ("deployment/gpusession-controller", SYSTEM),
    ):
        cluster.kubectl("rollout", "status", what, f"--namespace={namespace}", "--timeout=120s")


def _from(folder: Path, part: str) -> str:
    """Give the relative path that kustomize insists on."""
    up = "/".join([".."] * (len(folder.resolve().parts) - 1))
    return f"{up}{REPOSITORY / part}"


def _pod(name: str, *arguments: str, grace: int = 30) -> Object:
    container = {
        "name": "main",
        "image": WORKLOAD,
        "imagePullPolicy": "Never",
        "args": list(arguments),
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"gpusession.dev/use": "exclusive"}},
        "spec": {
            "containers": [container],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": grace,
        },
    }


def _session(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "gpusession.dev/v1alpha1",
        "kind": "Session",
        "metadata": {"name": name},
        "spec": {"podRefs": [{"name": name}], **spec},
    }


def _status(cluster: RealCluster, name: str) -> Object:
    found = cluster.kubectl("get", "session", name, "--output=json", check=False)
    return {} if found.returncode else json.loads(found.stdout).get("status", {})


def _wait_phase(cluster: RealCluster, name: str, phase: str) -> Object:
    wait_until(
        lambda: _status(cluster, name).get("phase") == phase,
        timeout=SECONDS,
        what=f"Session {name} to be {phase}",
        period=0.2,
    )
    return _status(cluster, name)


def _start(cluster: RealCluster, name: str, *arguments: str, **spec: Any) -> Object:
    """Start a Pod, and its Session once it holds memory; give the status once Active."""
    cluster.kubectl("apply", "--filename=-", input=json.dumps(_pod(name, *arguments)))
    wait_until(
        lambda: "ready" in cluster.kubectl("logs", name, check=False).stdout,
        timeout=SECONDS,
        what=f"{name} to hold its memory",
        period=0.2,
    )
    cluster.kubectl("apply", "--filename=-", input=json.dumps(_session(name, **spec)))
    return _wait_phase(cluster, name, "Active")


def _workloads(cluster: RealCluster, node: str, pod_uid: str) -> list[str]:
    """List the processes of a Pod on a node, from outside every container."""
    script = f"grep -l 'pod{pod_uid}' /proc/[0-9]*/cgroup 2>/dev/null || true"
    return cluster.enter(node, "sh", "-c", script).stdout.split()


def _given(cluster: RealCluster, status: Object) -> set[str]:
    """Give the GPUs that kubelet had the device plugin give to the Pod's container."""
    found: set[str] = set()
    for listed in _workloads(cluster, status["nodeName"], status["podUID"]):
        environ = Path(listed).with_name("environ")
        text = cluster.enter(status["nodeName"], "cat", str(environ)).stdout
        for variable in text.split("\0"):
            name, _, value = variable.partition("=")
            if name == "NVIDIA_VISIBLE_DEVICES":
                found |= set(value.split(","))
    return found


def test_session_knows_its_gpu_before_anything_is_held(cluster: RealCluster) -> None:
    """The agent has it from kubelet's PodResources API, and nobody claims a sight."""
    late = ("--memory=1Gi", "--allocate-after=600", "--ready-first")

    status = _start(cluster, "early", *late)

    given = _given(cluster, status)
    assert given
    assert set(status["gpuUUIDs"]) == given
    assert not status.get("seenHolding")
    cluster.kubectl("delete", "session", "early", "--timeout=60s")


def test_delete_returns_when_the_memory_is_free(cluster: RealCluster) -> None:
    """One kubectl delete on a real Pod: no process of it is left, and no finalizer stuck."""
    status = _start(cluster, "chat", "--memory=2Gi")

    cluster.kubectl("delete", "session", "chat", "--timeout=60s")

    assert len(status["gpuUUIDs"]) == 1
    wait_until(
        lambda: not _workloads(cluster, status["nodeName"], status["podUID"]),
        timeout=SECONDS,
        what="the pod's sandbox to go too",
        period=0.2,
    )


def test_closed_session_keeps_the_evidence_of_its_end(cluster: RealCluster) -> None:
    """Freed, with the bytes that NVML showed before and after."""
    _start(cluster, "notebook", "--memory=3Gi")

    patch = '--patch={"spec":{"desiredPhase":"Destroyed"}}'
    cluster.kubectl("patch", "session", "notebook", "--type=merge", patch)
    release = _wait_phase(cluster, "notebook", "Destroyed")["release"]

    assert release["verdict"] == "Freed"
    assert (release["memoryBytesBefore"], release["memoryBytesAfter"]) == (3 * 2**30, 0)


def test_agent_pod_that_is_deleted_in_mid_release_is_followed(cluster: RealCluster) -> None:
    """The DaemonSet's next agent goes on from the ledger on the node's disk."""
    slow = {"terminationGracePeriodSeconds": 5}
    status = _start(cluster, "stubborn", "--memory=1Gi", "--ignore-sigterm", **slow)
    cluster.kubectl("delete", "session", "stubborn", "--wait=false")
    _wait_phase(cluster, "stubborn", "PendingDestroy")

    node = f"--field-selector=spec.nodeName={status['nodeName']}"
    cluster.kubectl("delete", "pod", f"--namespace={AGENTS}", node, "--grace-period=1")

    wait_until(
        lambda: not _status(cluster, "stubborn"), timeout=120, what="stubborn to go", period=0.5
    )


def test_leader_that_is_deleted_is_followed(cluster: RealCluster) -> None:
    """The other replica takes the Lease and ends what is asked of it."""
    _start(cluster, "heir", "--memory=1Gi")
    holder = cluster.kubectl(
        *("get", "lease", "gpusession-controller", f"--namespace={SYSTEM}"),
        "--output=jsonpath={.spec.holderIdentity}",
    ).stdout
    cluster.kubectl("delete", "pod", holder, f"--namespace={SYSTEM}", "--wait=false")

    cluster.kubectl("delete", "session", "heir", "--timeout=60s")

    assert not _status(cluster, "heir")


def test_namespace_goes_with_its_sessions(cluster: RealCluster) -> None:
    """No step of an end needs anything that a terminating namespace refuses."""
    cluster.kubectl("create", "namespace", "crowd")
    wait_until(
        lambda: (
            not cluster.kubectl("get", "sa", "default", "--namespace=crowd", check=False).returncode
        ),
        timeout=SECONDS,
        what="the ServiceAccount",
    )
    names = ["one", "two"]
    objects = [o for n in names for o in (_pod(n, "--memory=1Gi", grace=2), _session(n))]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    cluster.kubectl("apply", "--namespace=crowd", "--filename=-", input=text)
    cluster.kubectl(
        *("wait", "--for=condition=Ready", "session", "--all", "--namespace=crowd"),
        "--timeout=60s",
    )

    cluster.kubectl("delete", "namespace", "crowd", "--timeout=120s")


def test_container_that_crashes_and_restarts_ends_nothing(cluster: RealCluster) -> None:
    """The Pod lives on, and so does its Session."""
    status = _start(cluster, "crash", "--memory=1Gi", "--exit-after=4", "--exit-code=3")
    query = "--output=jsonpath={.status.containerStatuses[0].restartCount}"
    wait_until(
        lambda: int(cluster.kubectl("get", "pod", "crash", query).stdout or 0) >= 1,
        timeout=SECONDS,
        what="a restart",
        period=0.2,
    )

    assert _status(cluster, "crash") == status
    cluster.kubectl("delete", "session", "crash", "--timeout=60s")


def test_unschedulable_pod_keeps_its_session_waiting(cluster: RealCluster) -> None:
    """Nothing is bound, the reason says why, and the end is free."""
    pod = _pod("homeless")
    pod["spec"]["nodeSelector"] = {"no": "where"}
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [pod, _session("homeless")]})
    cluster.kubectl("apply", "--filename=-", input=text)

    assert _wait_phase(cluster, "homeless", "Pending")["reason"] == "PodUnscheduled"
    cluster.kubectl("delete", "session", "homeless", "--timeout=30s")
    cluster.kubectl("delete", "pod", "homeless", "--grace-period=0", "--force")


def test_drained_node_ends_its_sessions_on_evidence(cluster: RealCluster) -> None:
    """An evicted Pod is gone, and its memory was seen to be free."""
    node = _start(cluster, "drained", "--memory=1Gi")["nodeName"]

    cluster.kubectl(
        *("drain", node, "--ignore-daemonsets", "--force", "--delete-emptydir-data"),
        *("--pod-selector=gpusession.dev/use=exclusive", "--grace-period=2", "--timeout=60s"),
    )
    status = _wait_phase(cluster, "drained", "Destroyed")
    cluster.kubectl("uncordon", node)

    assert status["reason"] in {"PodGone", "PodTerminated"}
    assert status["release"]["verdict"] == "Freed"
    cluster.kubectl("delete", "session", "drained", "--timeout=30s")


def test_node_that_lost_its_power_ends_its_sessions_as_node_gone(cluster: RealCluster) -> None:
    """Somebody says that it is out of service; nobody claims to have seen the memory free."""
    node = _start(cluster, "stranded", "--memory=1Gi")["nodeName"]
    cluster.kill_node(node)
    cluster.kubectl("taint", "node", node, "node.kubernetes.io/out-of-service=gone:NoExecute")

    status = _wait_phase(cluster, "stranded", "Destroyed")
    cluster.kubectl("taint", "node", node, "node.kubernetes.io/out-of-service-")
    cluster.boot_node(node)
    cluster.wait_ready(node)

    assert (status["reason"], status["release"]["verdict"]) == ("NodeGone", "NodeGone")
    cluster.kubectl("delete", "session", "stranded", "--timeout=30s")
