"""Words for end-to-end tests: make a Pod and its Session, wait, look from outside.

Everything goes through kubectl, as a user's would; what is looked at is etcd's state, raw
NVML, Redis and /proc, never the operator's own memory.
"""

import json
from typing import Any

from tests.demo import inspection
from tests.support.operator_stack import AGENT_ACCOUNT, CONTROLLER_ACCOUNT, Node, OperatorStack
from tests.support.processes import Process, wait_until
from tests.support.session_api import create_namespace

PATIENCE = 30.0
"""A guard against hanging, not a figure: two busy cores take a few seconds at most."""

Object = dict[str, Any]


class World:
    """One namespace of a running stack."""

    def __init__(self, stack: OperatorStack, namespace: str) -> None:
        self.stack = stack
        self.namespace = namespace
        create_namespace(stack.plane, namespace)

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        """Run kubectl as admin in this namespace."""
        return self.stack.plane.kubectl(*arguments, "-n", self.namespace, check=check).stdout

    def apply(self, *objects: Object) -> None:
        """Apply objects."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.stack.plane.kubectl("apply", "-f", "-", input=text)

    def pod(self, name: str, *arguments: str, node: str = "node-a", **settings: Any) -> Object:
        """Give a consenting Pod that runs the simulated workload with these arguments."""
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": settings.get("labels", {"gpusession.dev/use": "exclusive"}),
            },
            "spec": {
                "nodeName": node,
                "restartPolicy": settings.get("restart", "Never"),
                "automountServiceAccountToken": False,
                "containers": [
                    {
                        "name": "server",
                        "image": "gpusession.dev/simulated-workload:1",
                        "args": list(arguments),
                        "resources": {"limits": {"nvidia.com/gpu": "1"}},
                    }
                ],
            },
        }

    def session(self, name: str, *, pod: str = "", on_release: str = "", **spec: Any) -> Object:
        """Give a Session for the Pod of the same name, or of another."""
        ref = {"name": pod or name} | ({"onRelease": on_release} if on_release else {})
        return {
            "apiVersion": "gpusession.dev/v1alpha1",
            "kind": "Session",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"podRefs": [ref], **spec},
        }

    def get(self, name: str) -> Object | None:
        """Read a Session, None when it is gone."""
        path = f"/apis/gpusession.dev/v1alpha1/namespaces/{self.namespace}/sessions/{name}"
        return self.stack.plane.read(path)

    def get_pod(self, name: str) -> Object | None:
        """Read a Pod, None when it is gone."""
        return self.stack.plane.read(f"/api/v1/namespaces/{self.namespace}/pods/{name}")

    def status(self, name: str) -> Object:
        """Read a Session's status, empty when there is none."""
        return (self.get(name) or {}).get("status", {})

    def reason(self, name: str, kind: str) -> str:
        """Read the reason of one of a Session's conditions."""
        conditions = self.status(name).get("conditions", [])
        return next((c["reason"] for c in conditions if c["type"] == kind), "")

    def wait_phase(self, name: str, phase: str, *, watched: Process | None = None) -> Object:
        """Wait for a phase and return the status then."""
        what = f"{name} to be {phase}"
        self.wait(lambda: self.status(name).get("phase") == phase, what, watched=watched)
        return self.status(name)

    def wait_gone(self, name: str, *, watched: Process | None = None) -> None:
        """Wait until the Session object no longer exists."""
        self.wait(lambda: self.get(name) is None, f"Session {name} to be gone", watched=watched)

    def wait(self, predicate: Any, what: str, *, watched: Process | None = None) -> None:
        """Wait for anything; fails with the last words of the leading controller."""
        controller = watched or self.stack.controller
        programs = [controller] if controller.running else []
        wait_until(predicate, timeout=PATIENCE, what=what, processes=programs, period=0.1)

    def start(self, name: str, *arguments: str, node: str = "node-a", **spec: Any) -> Object:
        """Bring a Pod and its Session to life; returns the status once Active."""
        self.apply(self.pod(name, *arguments, node=node), self.session(name, **spec))
        return self.wait_phase(name, "Active")

    def delete(self, name: str) -> None:
        """Ask for the end of a Session without waiting for it."""
        self.kubectl("delete", "session", name, "--wait=false")

    def close(self, name: str) -> None:
        """Ask for the end of a Session and keep the object with its evidence."""
        patch = '{"spec":{"desiredPhase":"Destroyed"}}'
        self.kubectl("patch", "session", name, "--type=merge", "-p", patch)

    def processes(self, pod_uid: str, node: str = "node-a") -> set[inspection.Born]:
        """Read the processes of a Pod off the node's cgroups."""
        return inspection.processes_of_pods(self.node(node), [pod_uid])

    def held(self, pids: set[int], node: str = "node-a") -> int:
        """Sum up what raw NVML shows these pids holding on a node."""
        gpus = inspection.gpus(self.node(node), self.stack.nvml_library)
        return sum(gpu.holders.get(pid, 0) for gpu in gpus for pid in pids)

    def node(self, name: str) -> Node:
        """Give a node of the stack."""
        return self.stack.nodes[name]

    def writes(self) -> list[str]:
        """List the operator's own writes in this namespace so far."""
        return [
            f"{request.verb} {request.resource}/{request.subresource} {request.name}"
            for request in self.stack.plane.mutating_requests()
            if request.user in (CONTROLLER_ACCOUNT, AGENT_ACCOUNT)
            and request.namespace == self.namespace
        ]
