"""What a failing run on the operator stack leaves in its output: the stack at that moment."""

from collections.abc import Iterator

from tests.support.operator_stack import LEASE, OperatorStack
from tests.support.processes import Process, tail

LOG_LINES = 25
_SHOWN = '--output=jsonpath={range .items[*]}{.metadata.name}{" "}{.status}{"\\n"}{end}'
_QUESTIONS = (
    ("get", "sessions", "--all-namespaces", _SHOWN),
    ("get", "pods", "--all-namespaces", "--output=wide"),
    ("get", f"--raw={LEASE}"),
)


def diagnosis(stack: OperatorStack) -> str:
    """Tell what Kubernetes shows, which programs run, and what each said last."""
    return "\n".join([*_asked(stack), *_said(stack)])


def _asked(stack: OperatorStack) -> Iterator[str]:
    for question in _QUESTIONS:
        answer = stack.plane.kubectl(*question, "--request-timeout=10s", check=False)
        yield f"$ kubectl {' '.join(question)}\n{answer.stdout}{answer.stderr}"


def _said(stack: OperatorStack) -> Iterator[str]:
    for process in (*stack.programs, *stack.plane.processes.values()):
        yield f"--- {process.log} ({_state(process)})\n{tail(process.log, LOG_LINES)}"


def _state(process: Process) -> str:
    if process.running:
        return "running"
    code = process.exit_code()
    return "not started" if code is None else f"ended with {code}"
