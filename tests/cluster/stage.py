"""Where a story on the real cluster is played: Pods and Sessions, by kubectl alone.

When it is over, whatever it was about: all Sessions can be deleted, no process of any Pod
lives on any node, and NVML shows as much memory in use as before the first story.
"""

import json
from collections.abc import Iterable
from typing import Any

from tests.cluster import outside
from tests.cluster.images import WORKLOAD
from tests.cluster.installation import AGENTS, SYSTEM
from tests.cluster.real_cluster import RealCluster
from tests.support.processes import wait_until

SECONDS = 60.0
"""A guard against hanging, not a figure."""

PERIOD = 0.2
IDLE_BYTES = 512 * 2**20
"""What a simulated GPU has in use when nobody holds memory on it."""

Object = dict[str, Any]


def pod(name: str, *arguments: str, grace: int = 30, **spec: Any) -> Object:
    """Describe a Pod of the workload image with one GPU, which consents to its end."""
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
            **spec,
        },
    }


def session(name: str, *, pod: str = "", **spec: Any) -> Object:
    """Describe a Session of a Pod, which has the same name where none is given.

    Nobody is expected to beat for it, unless the story says so: there are gateways, and a slow
    story would end as HeartbeatLost.
    """
    return {
        "apiVersion": "gpusession.dev/v1alpha1",
        "kind": "Session",
        "metadata": {"name": name},
        "spec": {"podRefs": [{"name": pod or name}], "heartbeat": {"periodSeconds": 0}, **spec},
    }


def condition(status: Object, kind: str) -> Object:
    """Give a condition of a Session; empty where it has none of the kind."""
    found = [c for c in status.get("conditions", []) if c["type"] == kind]
    return found[0] if found else {}


class Stage:
    """The namespace "default" of the real cluster, empty before and after each story."""

    def __init__(self, cluster: RealCluster) -> None:
        self.cluster = cluster
        self.kubectl = cluster.kubectl
        self._expected: list[str] = []

    def apply(self, *objects: Object, namespace: str = "default") -> None:
        """Apply objects, all at once."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", f"--namespace={namespace}", "--filename=-", input=text)

    def read(self, what: str, name: str) -> Object:
        """Read an object; empty where there is none."""
        found = self.kubectl("get", what, name, "--output=json", check=False)
        return {} if found.returncode else json.loads(found.stdout)

    def status(self, name: str) -> Object:
        """Read a Session's status; empty where there is none."""
        status: Object = self.read("session", name).get("status", {})
        return status

    def wait_phase(self, name: str, phase: str) -> Object:
        """Wait for a Session to get there, and give its status."""
        wait_until(
            lambda: self.status(name).get("phase") == phase,
            timeout=SECONDS,
            what=f"Session {name} to be {phase}",
            period=PERIOD,
        )
        return self.status(name)

    def start(self, name: str, *arguments: str, grace: int = 30, **spec: Any) -> Object:
        """Start a Pod, and its Session once it holds memory; give the status once Active."""
        return self.start_pod(pod(name, *arguments, grace=grace), **spec)

    def start_pod(self, described: Object, **spec: Any) -> Object:
        """Do the same with a Pod that is described by its story."""
        name = described["metadata"]["name"]
        self.apply(described)
        self.wait_holding(name)
        self.apply(session(name, **spec))
        return self.wait_phase(name, "Active")

    def wait_holding(self, pod_name: str) -> None:
        """Wait until the present container of a Pod says that it holds its memory."""
        wait_until(
            lambda: "ready" in self.kubectl("logs", pod_name, check=False).stdout,
            timeout=SECONDS,
            what=f"{pod_name} to hold its memory",
            period=PERIOD,
        )

    def wait_restarted(self, pod_name: str) -> Object:
        """Wait until kubelet has started a Pod's container again; give the container's status."""
        wait_until(
            lambda: self._container(pod_name).get("restartCount", 0) >= 1,
            timeout=SECONDS,
            what=f"a restart of {pod_name}",
            period=PERIOD,
        )
        return self._container(pod_name)

    def _container(self, pod_name: str) -> Object:
        statuses = self.read("pod", pod_name).get("status", {}).get("containerStatuses", [{}])
        only: Object = statuses[0]
        return only

    def wait_condition(self, name: str, kind: str, wanted: str) -> None:
        """Wait until a condition of a Session has this status and reason."""

        def found() -> bool:
            now = condition(self.status(name), kind)
            return wanted == f"{now.get('status')} {now.get('reason')}"

        what = f"{kind} of {name} to be {wanted}"
        wait_until(found, timeout=SECONDS, what=what, period=PERIOD)

    def ask_to_end(self, name: str) -> None:
        """Ask for the end of a Session; the object stays, with its evidence."""
        patch = '--patch={"spec":{"desiredPhase":"Destroyed"}}'
        self.kubectl("patch", "session", name, "--type=merge", patch)

    def agent(self, node: str) -> Object:
        """Read the container status of the agent on a node."""
        where = (f"--namespace={AGENTS}", f"--field-selector=spec.nodeName={node}")
        pods = json.loads(self.kubectl("get", "pods", *where, "--output=json").stdout)["items"]
        statuses = pods[0]["status"].get("containerStatuses", [{}]) if pods else [{}]
        only: Object = statuses[0]
        return only

    def wait_agent(self, node: str, *, after: Object) -> None:
        """Wait until another agent than the one before serves on a node."""

        def serves() -> bool:
            now = self.agent(node)
            return bool(now.get("ready")) and now["containerID"] != after["containerID"]

        wait_until(serves, timeout=SECONDS, what=f"the next agent on {node}", period=PERIOD)

    def close(self, name: str) -> Object:
        """Ask for the end of a Session; give its status at the end."""
        self.ask_to_end(name)
        return self.wait_phase(name, "Destroyed")

    def ends_told(self, name: str) -> int:
        """Count the Events that tell of the end of a Session; they outlive it, and its story."""
        about = f"--field-selector=involvedObject.kind=Session,involvedObject.name={name}"
        told = json.loads(self.kubectl("get", "events", about, "--output=json").stdout)["items"]
        return sum(event.get("count") or 1 for event in told)

    def lease(self) -> Object:
        """Read who leads the controllers, and how many reigns there were before.

        The apiserver leaves out an empty name, of a Lease that was given back, and a count of 0.
        """
        lease = ("get", "lease", "gpusession-controller", f"--namespace={SYSTEM}")
        spec: Object = json.loads(self.kubectl(*lease, "--output=json").stdout)["spec"]
        return {"holderIdentity": "", "leaseTransitions": 0} | spec

    def leader(self) -> Object:
        """Read the Pod of the leading controller."""
        where = ("get", "pod", self.lease()["holderIdentity"], f"--namespace={SYSTEM}")
        leader: Object = json.loads(self.kubectl(*where, "--output=json").stdout)
        return leader

    def node_of_leader(self) -> str:
        """Name the node that the leading controller is on."""
        node: str = self.leader()["spec"]["nodeName"]
        return node

    def node_without_leader(self) -> str:
        """Name a node whose loss costs nobody the time that a new leader takes."""
        leaders = self.node_of_leader()
        return next(name for name in self.cluster.nodes if name != leaders)

    def pods_of_product(self, node: str) -> list[str]:
        """Name the Pods of the product on a node."""
        where = ("--all-namespaces", f"--field-selector=spec.nodeName={node}")
        names = self.kubectl("get", "pods", *where, "--output=jsonpath={.items[*].metadata.name}")
        return [name for name in names.stdout.split() if name.startswith("gpusession-")]

    def delete(self, name: str) -> None:
        """Delete a Session; returns when it is gone."""
        self.kubectl("delete", "session", name, f"--timeout={SECONDS:.0f}s")

    def clear(self) -> None:
        """End what the story left, and see that nothing of it is left."""
        in_time = f"--timeout={SECONDS:.0f}s"
        self.kubectl("delete", "session", "--all", in_time)
        self.kubectl("delete", "deployment", "--all", "--cascade=foreground", in_time)
        self.kubectl("delete", "pod", "--all", "--grace-period=1", in_time)
        wait_until(
            lambda: not self.workloads(),
            timeout=SECONDS,
            what="the last process of the story's Pods to go",
            period=PERIOD,
        )
        for node in self.cluster.nodes.values():
            assert outside.holders(node) == {}
            assert outside.memory_in_use(node) == [IDLE_BYTES] * len(node.gpus)

    def expect_logged(self, text: str) -> None:
        """Let the product's logs hold error lines with this text: the story provokes them."""
        self._expected.append(text)

    def unexpected(self, faults: Iterable[str]) -> list[str]:
        """Leave out of these lines what the story expects."""
        return [line for line in faults if not any(text in line for text in self._expected)]

    @staticmethod
    def workloads() -> list[outside.Living]:
        """List the processes of all workloads on all nodes, seen from outside."""
        program = "tests.support.workload"
        return [process for process in outside.pod_processes() if program in process.command]
