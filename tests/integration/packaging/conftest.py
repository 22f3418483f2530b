"""What people install: the manifests and the chart, rendered by the real kubectl and Helm."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.control_plane import ControlPlane
from tests.support.helm_tool import helm_tool
from tests.support.session_api import MANIFESTS
from tests.support.toolchain import REPOSITORY

Object = dict[str, Any]

CHART = REPOSITORY / "charts" / "gpusession"


@pytest.fixture
def kustomized(session_api: ControlPlane, tmp_path: Path) -> Callable[..., list[Object]]:
    """Give a function that renders manifests/ with some of its components, and patches."""

    def render(*components: str, patches: Sequence[Object] = ()) -> list[Object]:
        overlay = tmp_path / "-".join(("overlay", *components))
        overlay.mkdir()
        up = Path(*[".."] * (len(overlay.resolve().parts) - 1))  # kustomize wants no "/..."
        base = up / MANIFESTS.relative_to("/")
        (overlay / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "resources": [str(base)],
                    "components": [str(base / "components" / each) for each in components],
                    "patches": list(patches),
                }
            )
        )
        text = session_api.kubectl("kustomize", overlay).stdout
        return list(yaml.safe_load_all(text))

    return render


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Give a function that runs `helm template` on the chart as it is installed."""
    program = helm_tool()

    def template(*options: str) -> subprocess.CompletedProcess[str]:
        command = [program, "template", "gpusession", CHART, "--namespace=gpusession-system"]
        return subprocess.run([*command, *options], capture_output=True, text=True, check=False)

    return template


@pytest.fixture
def charted(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., list[Object]]:
    """Give a function that renders the chart, CRD included."""

    def render(*options: str) -> list[Object]:
        done = helm("--include-crds", *options)
        assert not done.returncode, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    return render
