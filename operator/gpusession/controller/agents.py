"""Where each node's agent is: read off the agents' own Pods."""

from collections.abc import Callable

from gpusession.api.cluster import Pod

DEFAULT_PORT = 8443
"""Used where an agent's Pod declares no port."""


class AgentDirectory:
    """The newest running agent of each node."""

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self._pods: dict[str, Pod] = {}
        self._on_change = on_change

    def note(self, pod: Pod, gone: bool) -> None:
        """Take in an agent's Pod that came, changed or went."""
        node = pod.spec.node_name
        if node is None:
            return
        known = self._pods.get(node)
        usable = not gone and pod.status.phase == "Running" and pod.status.pod_ip is not None
        if usable and pod.metadata.deletion_timestamp is None:
            self._pods[node] = pod
            self._on_change(node)
        elif known is not None and known.metadata.uid == pod.metadata.uid:
            del self._pods[node]

    def locate(self, node: str) -> str | None:
        """Return the base URL of a node's agent, or None where none runs."""
        pod = self._pods.get(node)
        if pod is None:
            return None
        ports = [port.container_port for c in pod.spec.containers for port in c.ports]
        host = pod.status.pod_ip or ""
        host = f"[{host}]" if ":" in host else host
        return f"https://{host}:{ports[0] if ports else DEFAULT_PORT}"
