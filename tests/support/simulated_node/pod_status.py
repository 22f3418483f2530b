"""The status that kubelet would report of a Pod, out of how its containers stand."""

import time
from collections.abc import Sequence
from typing import Any

from tests.support.simulated_node.containers import Container, Ending

Object = dict[str, Any]


def timestamp(seconds: float) -> str:
    """Write a time as metav1.Time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def phase_of(containers: Sequence[Container]) -> str:
    """Give the phase: running once all were up, over when no container comes back."""
    if all(c.ending and not c.is_running and not c.will_restart for c in containers):
        failed = any(c.ending and c.ending.exit_code for c in containers)
        return "Failed" if failed else "Succeeded"
    return "Running" if all(c.has_been_up or c.restarts for c in containers) else "Pending"


def pod_status(
    pod: Object, containers: Sequence[Container], *, address: str, began: float
) -> Object:
    """Describe a Pod whose containers this node runs."""
    phase = phase_of(containers)
    ready = all(c.is_up for c in containers)
    images = {c["name"]: c.get("image", "") for c in pod["spec"]["containers"]}
    return _status(
        phase=phase,
        ready=ready,
        address=address,
        began=began,
        containers=[_container_status(c, images[c.name]) for c in containers],
    )


def unmanaged_status(pod: Object, *, address: str, began: float) -> Object:
    """Describe a Pod as running that somebody else runs."""
    containers = [
        {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": container.get("image", ""),
            "containerID": f"containerd://{pod['metadata']['uid'].replace('-', '') * 2}",
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": timestamp(began)}},
        }
        for container in pod["spec"]["containers"]
    ]
    return _status(phase="Running", ready=True, address=address, began=began, containers=containers)


def keep_transitions(old: Object, new: Object, *, now: float) -> None:
    """Date each condition of the new status from when it last changed."""
    before = {condition["type"]: condition for condition in old.get("conditions", [])}
    for condition in new["conditions"]:
        was = before.get(condition["type"])
        same = was is not None and was["status"] == condition["status"]
        condition["lastTransitionTime"] = (
            was["lastTransitionTime"] if was and same else timestamp(now)
        )


def _status(
    *, phase: str, ready: bool, address: str, began: float, containers: list[Object]
) -> Object:
    over = phase in ("Succeeded", "Failed")
    states = {
        "PodReadyToStartContainers": not over,
        "Initialized": True,
        "Ready": ready,
        "ContainersReady": ready,
        "PodScheduled": True,
    }
    reason = {"reason": "PodCompleted"} if phase == "Succeeded" else {}
    unready = reason or {"reason": "PodFailed" if over else "ContainersNotReady"}
    return {
        "phase": phase,
        "conditions": [
            {"type": kind, "status": str(holds)} | ({} if holds else unready)
            for kind, holds in states.items()
        ],
        "hostIP": address,
        "hostIPs": [{"ip": address}],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": timestamp(began),
        "containerStatuses": containers,
    }


def _container_status(container: Container, image: str) -> Object:
    status: Object = {
        "name": container.name,
        "image": image,
        "imageID": image,
        "ready": container.is_up,
        "started": container.is_up,
        "restartCount": container.restarts,
        "state": _state(container),
    }
    current = container.id or (container.ending.container_id if container.ending else "")
    if current:
        status["containerID"] = f"containerd://{current}"
    if container.ending and "terminated" not in status["state"]:
        status["lastState"] = {"terminated": _terminated(container.ending)}
    return status


def _state(container: Container) -> Object:
    if container.is_running:
        return {"running": {"startedAt": timestamp(container.began)}}
    if container.ending and not container.will_restart:
        return {"terminated": _terminated(container.ending)}
    reason = "CrashLoopBackOff" if container.ending else "ContainerCreating"
    return {"waiting": {"reason": reason}}


def _terminated(ending: Ending) -> Object:
    reason = "Completed" if ending.exit_code == 0 else "Error"
    return {
        "exitCode": ending.exit_code,
        "reason": reason,
        "startedAt": timestamp(ending.began),
        "finishedAt": timestamp(ending.ended),
        "containerID": f"containerd://{ending.container_id}",
    }
