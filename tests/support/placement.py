"""Gives Pods their nodes where no scheduler runs: beside a control plane without real nodes."""

import json

from tests.support.control_plane import ControlPlane

_UNPLACED = "--field-selector=spec.nodeName="


def place_pods(plane: ControlPlane, namespace: str, nodes: tuple[str, ...]) -> None:
    """Bind each Pod that has no node to one of these, in turn, as the scheduler does it."""
    pods = ("get", "pods", f"--namespace={namespace}", _UNPLACED, "--output=name")
    for number, pod in enumerate(plane.kubectl(*pods).stdout.split()):
        name = pod.rpartition("/")[2]
        target = {"apiVersion": "v1", "kind": "Node", "name": nodes[number % len(nodes)]}
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace},
            "target": target,
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/binding"
        plane.kubectl("create", f"--raw={path}", "--filename=-", input=json.dumps(binding))
