"""How tests are shared out where several run side by side (pytest -n)."""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

STACKS = 2
"""Workers that run e2e modules at a time. Each keeps a whole product running, one core's work,
and its stories are the ones that wait for seconds to pass as they should."""


class StacksBeside(LoadFileScheduling):
    """By module. Some workers begin with tests/e2e, the rest with all else, then with what is left.

    So no stack is started twice, and there is always something to do while a story waits.
    """

    def _assign_work_unit(self, node: WorkerController) -> None:
        wants_e2e = node in list(self.nodes)[:STACKS]
        fitting = (scope for scope in self.workqueue if _is_e2e(scope) == wants_e2e)
        scope = next(fitting, None)
        if scope is not None:
            self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> StacksBeside | None:
    """Share out by module where that is asked for."""
    return StacksBeside(config, log) if config.getoption("dist") == "loadfile" else None


def _is_e2e(scope: str) -> bool:
    return scope.startswith("tests/e2e/")
