"""A cgroup for each node, so that two kubelets on one machine never tidy up each other's pods."""

import os
import time
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")

DRAIN_SECONDS = 10.0
"""A cgroup can be removed only when the kernel has buried its last process: up to two seconds."""


def _hierarchies() -> list[Path]:
    """Give the one tree of cgroup v2, or the many of v1."""
    if (_ROOT / "cgroup.controllers").exists():
        return [_ROOT]
    return [path for path in _ROOT.iterdir() if path.is_dir() and not path.is_symlink()]


def create(name: str) -> None:
    """Make the cgroup in every tree; a v1 cpuset takes nobody before its CPUs are named."""
    for tree in _hierarchies():
        (tree / name).mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if tree != _ROOT and (tree / setting).exists():
                (tree / name / setting).write_text((tree / setting).read_text())


def refusal() -> str:
    """Make one for a trial and remove it again; say why that is refused, or nothing."""
    name = f"gpusession-trial-{os.getpid()}"
    try:
        try:
            create(name)
        finally:
            remove(name)
    except OSError as error:
        return str(error)
    return ""


def remove(name: str) -> None:
    """Remove the cgroup and all below it, as soon as they are empty."""
    give_up_at = time.monotonic() + DRAIN_SECONDS
    while existing := [tree / name for tree in _hierarchies() if (tree / name).exists()]:
        for folder in existing:
            for inner, _, _ in os.walk(folder, topdown=False):
                with suppress(OSError):
                    Path(inner).rmdir()
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"{existing[0]} still has processes")
        time.sleep(0.02)
