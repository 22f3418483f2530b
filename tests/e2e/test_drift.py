"""No drift: what defaults and the operator add is nobody's field in a manifest.

Every sample, applied as GitOps tools do it: on the server (Flux, Argo CD) and on the client.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.operator_stack import OperatorStack
from tests.support.placement import place_pods
from tests.support.processes import wait_until
from tests.support.session_api import SAMPLES
from tests.support.session_world import World

pytestmark = pytest.mark.timeout(90)

FILES = sorted(SAMPLES.glob("*.yaml"))
SERVER, CLIENT = ("--server-side",), ()


class Applied:
    """All samples in a namespace of their own, applied in one way and seen by the operator."""

    def __init__(self, stack: OperatorStack, namespace: str, way: tuple[str, ...]) -> None:
        self.world = World(stack, namespace)
        self._way = way

    def kubectl(self, verb: str, file: Path) -> tuple[int, str]:
        """Run `kubectl apply` or `kubectl diff` on a sample; gives code and output."""
        text = file.read_text(encoding="utf-8").replace("gpu-demo", self.world.namespace)
        plane = self.world.stack.plane
        done = plane.kubectl(verb, *self._way, "-f", "-", input=text, check=False)
        return done.returncode, done.stdout + done.stderr

    def wait_written(self) -> None:
        """Wait until the operator has put its finalizer and status on each Session."""
        what = "finalizer and status on every sample"
        wait_until(lambda: all(map(_is_written, self._sessions())), timeout=30, what=what)

    def _sessions(self) -> list[dict[str, Any]]:
        return yaml.safe_load(self.world.kubectl("get", "sessions", "-o", "yaml"))["items"]


def _is_written(session: dict[str, Any]) -> bool:
    return bool(session.get("status", {}).get("phase") and session["metadata"].get("finalizers"))


@pytest.fixture(scope="module", params=[SERVER, CLIENT], ids=["server-side", "client-side"])
def applied(stack: OperatorStack, request: pytest.FixtureRequest) -> Iterator[Applied]:
    """Give the samples as they are some seconds after they were applied."""
    name = "e2e-drift-server" if request.param else "e2e-drift-client"
    applied = Applied(stack, name, request.param)
    for file in FILES:
        code, told = applied.kubectl("apply", file)
        assert code == 0, told
    place_pods(stack.plane, name, tuple(stack.nodes))
    applied.wait_written()
    yield applied
    stack.plane.kubectl("delete", "namespace", name, "--wait=false")


Check = Callable[[Applied, Path], None]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sample_shows_no_difference(applied: Applied, file: Path) -> None:
    """Kubectl diff exits with 0: defaults, finalizer, annotation and status are no drift."""
    assert applied.kubectl("diff", file) == (0, "")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sample_applied_again_changes_nothing(applied: Applied, file: Path) -> None:
    """A sync every few minutes writes nothing, and no generation moves."""
    before = _versions(applied.world)

    code, told = applied.kubectl("apply", file)

    assert code == 0, told
    assert _versions(applied.world) == before


def _versions(world: World) -> list[str]:
    shown = "jsonpath={range .items[*]}{.metadata.name}={.metadata.generation} {end}"
    return world.kubectl("get", "sessions,pods", "-o", shown).split()
