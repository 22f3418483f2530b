"""What a Pod asks of its node: pure readings of its object."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.simulated_node.containers import Program

REPOSITORY = Path(__file__).resolve().parents[3]
WORKLOAD_IMAGE = "gpusession.dev/simulated-workload:"
WORKLOAD = (sys.executable, "-S", "-m", "tests.support.workload")
GPU = "nvidia.com/gpu"
UNMANAGED = "simulated-kubelet/unmanaged"
ENDED = ("Succeeded", "Failed")

Object = dict[str, Any]


def is_unmanaged(pod: Object) -> bool:
    """Whether somebody else starts and ends what the Pod stands for."""
    annotations: Mapping[str, str] = pod["metadata"].get("annotations", {})
    return annotations.get(UNMANAGED) == "true"


def has_ended(pod: Object) -> bool:
    """Whether its phase is final."""
    return pod.get("status", {}).get("phase") in ENDED


def wants_gpu(pod: Object) -> bool:
    """Whether a container asks for a GPU."""
    limits = (c.get("resources", {}).get("limits", {}) for c in pod["spec"]["containers"])
    return any(int(limit.get(GPU, 0)) for limit in limits)


def pod_cgroup(pod: Object) -> Path:
    """Where the cgroupfs driver puts it: Guaranteed Pods have no level of their class."""
    quality = pod["status"].get("qosClass", "BestEffort")
    parent = Path("kubepods") / ("" if quality == "Guaranteed" else quality.lower())
    return parent / f"pod{pod['metadata']['uid']}"


def log_folder(pod: Object) -> Path:
    """Where kubelet keeps its logs, below /var/log/pods."""
    metadata = pod["metadata"]
    return Path(f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}")


def restarts_after(pod: Object, exit_code: int) -> bool:
    """Whether its restartPolicy wants a container back that ended so."""
    policy = pod["spec"].get("restartPolicy", "Always")
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def program(pod: Object, container: Object, *, base: Mapping[str, str], address: str) -> Program:
    """Say what a container runs; base is the environment that every one gets."""
    simulated = container.get("image", "").startswith(WORKLOAD_IMAGE)
    env = dict(base)
    if simulated:
        env["PYTHONPATH"] = str(REPOSITORY)
    for variable in container.get("env", []):
        env[variable["name"]] = _value(pod, variable, env, address)
    entrypoint = list(WORKLOAD) if simulated else []
    command = [_expand(part, env) for part in container.get("command", [])]
    arguments = [_expand(part, env) for part in container.get("args", [])]
    return Program(
        argv=[*(command or entrypoint), *arguments],
        env=env,
        working_dir=container.get("workingDir", str(REPOSITORY)),
        says_ready=simulated,
    )


def _value(pod: Object, variable: Object, env: Mapping[str, str], address: str) -> str:
    if "valueFrom" not in variable:
        return _expand(variable.get("value", ""), env)
    fields: dict[str, str] = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "spec.nodeName": pod["spec"]["nodeName"],
        "status.hostIP": address,
        "status.podIP": address,
    }
    return fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]


def _expand(text: str, env: Mapping[str, str]) -> str:
    """Replace $(NAME) as Kubernetes does: $$ escapes, and an unknown name stays."""

    def replaced(found: re.Match[str]) -> str:
        name = found.group(1)
        return "$" if name is None else env.get(name, found.group())

    return re.sub(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)", replaced, text)
