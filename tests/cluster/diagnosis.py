"""What a failing run leaves in its output: the cluster as it was at that moment."""

from collections.abc import Iterator

from tests.cluster import outside
from tests.cluster.installation import WORKLOADS
from tests.cluster.real_cluster import RealCluster
from tests.support.processes import ProcessFailedError

_QUICKLY = "--request-timeout=10s"
_SESSIONS = '--output=jsonpath={range .items[*]}{.metadata.name}{" "}{.status}{"\\n"}{end}'
_QUESTIONS = (
    ("get", "nodes", "--output=wide"),
    ("get", "pods", "--all-namespaces", "--output=wide"),
    ("get", "sessions", "--all-namespaces", _SESSIONS),
    ("get", "events", "--all-namespaces", "--sort-by=.metadata.creationTimestamp"),
    *(
        ("logs", what, f"--namespace={namespace}", "--all-pods", "--prefix", "--tail=60")
        for what, namespace in WORKLOADS.items()
    ),
)
_LINES = 150


def diagnosis(cluster: RealCluster) -> str:
    """Tell what Kubernetes, the product's logs and the nodes seen from outside show."""
    return "\n".join([*_asked(cluster), *_seen(cluster), cluster.log_tails()])


def _asked(cluster: RealCluster) -> Iterator[str]:
    for question in _QUESTIONS:
        answer = cluster.kubectl(*question, _QUICKLY, check=False)
        lines = (answer.stdout + answer.stderr).splitlines()[-_LINES:]
        yield "\n".join([f"$ kubectl {' '.join(question)}", *lines])


def _seen(cluster: RealCluster) -> Iterator[str]:
    for process in outside.pod_processes():
        yield f"lives in pod {process.pod_uid}: {process.pid} {process.command}"
    for node in cluster.nodes.values():
        try:
            yield f"NVML on {node.name}: {outside.holders(node)}"
        except ProcessFailedError as error:
            yield f"NVML on {node.name}: {error}"
