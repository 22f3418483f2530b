"""What a failing run leaves in its output: the cluster as it was at that moment."""

from collections.abc import Iterator

from tests.cluster import outside
from tests.cluster.installation import WORKLOADS
from tests.cluster.real_cluster import RealCluster
from tests.support.cluster_questions import PODS, SESSIONS, answers
from tests.support.processes import ProcessFailedError

_QUESTIONS = (
    ("get", "nodes", "--output=wide"),
    PODS,
    SESSIONS,
    ("get", "events", "--all-namespaces", "--sort-by=.metadata.creationTimestamp"),
    *(
        ("logs", what, f"--namespace={namespace}", "--all-pods", "--prefix", "--tail=60")
        for what, namespace in WORKLOADS.items()
    ),
)


def diagnosis(cluster: RealCluster) -> str:
    """Tell what Kubernetes, the product's logs and the nodes seen from outside show."""
    return "\n".join([*answers(cluster.kubectl, _QUESTIONS), *_seen(cluster), cluster.log_tails()])


def _seen(cluster: RealCluster) -> Iterator[str]:
    for process in outside.pod_processes():
        yield f"lives in pod {process.pod_uid}: {process.pid} {process.command}"
    for node in cluster.nodes.values():
        try:
            yield f"NVML on {node.name}: {outside.holders(node)}"
        except ProcessFailedError as error:
            yield f"NVML on {node.name}: {error}"
