"""A gateway of the stack, and the account that all of them have."""

import json
from dataclasses import dataclass

from tests.support.control_plane import ControlPlane
from tests.support.processes import Process
from tests.support.tcp_proxy import TcpProxy

NAMESPACE, ACCOUNT = "gpusession-system", "gpusession-gateway"


@dataclass
class StackGateway:
    """One gateway: its program, where it listens, and its link to Redis if it has one."""

    process: Process
    port: int
    metrics_port: int
    link: TcpProxy | None

    @property
    def url(self) -> str:
        """Where clients come."""
        return f"http://127.0.0.1:{self.port}"


def install(plane: ControlPlane) -> None:
    """Make the gateways' account, who may ask whose token it is and what that one may do."""
    rules = [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"]},
    ]
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT}
    rbac = "rbac.authorization.k8s.io/v1"
    items = [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": ACCOUNT, "namespace": NAMESPACE},
        },
        {
            "apiVersion": rbac,
            "kind": "ClusterRole",
            "metadata": {"name": ACCOUNT},
            "rules": [rule | {"verbs": ["create"]} for rule in rules],
        },
        {
            "apiVersion": rbac,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": ACCOUNT},
            "subjects": [subject],
            "roleRef": role,
        },
    ]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    plane.kubectl("apply", "-f", "-", input=text)
