"""Builds Helm from its pinned Go module, for the tests of the chart.

It took four minutes on two busy cores, once per machine; a helm on PATH may be another major
version and is not used.
"""

import os
from pathlib import Path

from tests.support.assets import go_version_needed
from tests.support.processes import Process
from tests.support.progress import progress
from tests.support.toolchain import AssetMissingError, cache_root, digest, go_tool, published

MODULE = Path(__file__).resolve().parent / "helm"
PACKAGE = "helm.sh/helm/v4/cmd/helm"

BUILD_SECONDS = 3600.0
"""A slow machine may need ten times the four minutes."""


def helm_tool() -> Path:
    """Give the helm of tests/support/helm/go.mod, built where it is not in the cache."""
    sources = [(MODULE / name).read_bytes() for name in ("go.mod", "go.sum", "tools.go")]
    target = cache_root() / "helm" / digest(*sources, PACKAGE.encode())
    if not (target / "helm").is_file():
        with published(target) as folder:
            if folder is not None:
                _build(folder, go_tool(go_version_needed(sources[0].decode())))
    return target / "helm"


def _build(folder: Path, go: Path) -> None:
    settings = {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    env = {key: value for key, value in os.environ.items() if key != "GOROOT"} | settings
    argv = [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", folder / "helm", PACKAGE]
    build = Process(argv, log=folder / "build.log", env=env, cwd=MODULE)
    with progress("building helm (once per machine)"), build:
        if build.wait(BUILD_SECONDS):
            raise AssetMissingError(f"building helm failed:\n{build.log_tail(40)}")


if __name__ == "__main__":
    print(helm_tool())
