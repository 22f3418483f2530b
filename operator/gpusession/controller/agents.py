"""Where each node's agent is: read off the agents' own Pods."""

from collections.abc import Callable

from gpusession.api.cluster import Pod

DEFAULT_PORT = 8443
"""Used where an agent's Pod declares no port."""


class AgentDirectory:
    """The running agents of each node; in a surging rollout there are two for a moment."""

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self._pods: dict[str, dict[str, Pod]] = {}
        self._on_change = on_change

    def note(self, pod: Pod, gone: bool) -> None:
        """Take in an agent's Pod that came, changed or went."""
        node = pod.spec.node_name
        if node is None:
            return
        known = self._pods.setdefault(node, {})
        known.pop(pod.metadata.uid, None)
        usable = not gone and pod.status.phase == "Running" and pod.status.pod_ip is not None
        if usable and pod.metadata.deletion_timestamp is None:
            known[pod.metadata.uid] = pod
            self._on_change(node)

    def locate(self, node: str) -> str | None:
        """Return the base URL of a node's newest agent, or None where none runs."""
        pods = list(self._pods.get(node, {}).values())
        if not pods:
            return None
        ports = [port.container_port for c in pods[-1].spec.containers for port in c.ports]
        host = pods[-1].status.pod_ip or ""
        host = f"[{host}]" if ":" in host else host
        return f"https://{host}:{ports[0] if ports else DEFAULT_PORT}"
