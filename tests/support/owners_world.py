"""Workloads whose Pods consent and hold GPU memory, for end-to-end tests of their owners."""

import json
from typing import Any

from tests.support.session_world import World

DEPLOYMENT, REPLICA_SET, STATEFUL_SET = "Deployment", "ReplicaSet", "StatefulSet"
REPLICATION_CONTROLLER = "ReplicationController"


def start_workload(world: World, kind: str, name: str, *arguments: str, replicas: int = 1) -> None:
    """Create a workload of Pods that consent, run on node-a and hold memory."""
    pod = world.pod(name, "--memory=1Gi", *arguments, restart="Always")
    labels = {"app": name}
    template = {
        "metadata": {"labels": pod["metadata"]["labels"] | labels},
        "spec": pod["spec"],
    }
    plain = kind == REPLICATION_CONTROLLER
    spec: dict[str, Any] = {
        "replicas": replicas,
        "selector": labels if plain else {"matchLabels": labels},
        "template": template,
    }
    if kind == STATEFUL_SET:
        spec |= {"serviceName": name, "podManagementPolicy": "Parallel"}
    version = "v1" if plain else "apps/v1"
    metadata = {"name": name, "namespace": world.namespace}
    world.apply({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})


def pods_of(world: World, name: str) -> list[str]:
    """List the Pods of a workload that are not going."""
    listed = json.loads(world.kubectl("get", "pods", "-l", f"app={name}", "-o", "json"))
    kept = (pod["metadata"] for pod in listed["items"])
    return sorted(pod["name"] for pod in kept if "deletionTimestamp" not in pod)


def replicas_of(world: World, kind: str, name: str) -> int:
    """Read how many Pods a workload wants."""
    return int(world.kubectl("get", kind, name, "-o", "jsonpath={.spec.replicas}"))
