"""What is asked of a cluster when something failed on it, by whoever says so."""

import subprocess
from collections.abc import Callable, Iterable, Iterator

SESSIONS = (
    *("get", "sessions", "--all-namespaces"),
    '--output=jsonpath={range .items[*]}{.metadata.name}{" "}{.status}{"\\n"}{end}',
)
PODS = ("get", "pods", "--all-namespaces", "--output=wide")

LINES = 150
"""Of each answer; the last ones tell most."""

_QUICKLY = "--request-timeout=10s"


def answers(
    kubectl: Callable[..., subprocess.CompletedProcess[str]], questions: Iterable[tuple[str, ...]]
) -> Iterator[str]:
    """Give what kubectl says to each, refusals too, below the question as one would type it."""
    for question in questions:
        answer = kubectl(*question, _QUICKLY, check=False)
        lines = (answer.stdout + answer.stderr).splitlines()[-LINES:]
        yield "\n".join([f"$ kubectl {' '.join(question)}", *lines])
