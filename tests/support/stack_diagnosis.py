"""What a failing run on the operator stack leaves in its output: the stack at that moment."""

from collections.abc import Iterator

from tests.support.cluster_questions import PODS, SESSIONS, answers
from tests.support.operator_stack import LEASE, OperatorStack
from tests.support.processes import Process, tail

LOG_LINES = 25
_QUESTIONS = (SESSIONS, PODS, ("get", f"--raw={LEASE}"))


def diagnosis(stack: OperatorStack) -> str:
    """Tell what Kubernetes shows, which programs run, and what each said last."""
    return "\n".join([*answers(stack.plane.kubectl, _QUESTIONS), *_said(stack)])


def _said(stack: OperatorStack) -> Iterator[str]:
    for process in (*stack.programs, *stack.plane.processes.values()):
        yield f"--- {process.log} ({_state(process)})\n{tail(process.log, LOG_LINES)}"


def _state(process: Process) -> str:
    if process.running:
        return "running"
    code = process.exit_code()
    return "not started" if code is None else f"ended with {code}"
