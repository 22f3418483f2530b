"""On what a figure was measured, and what a process has used of it."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support import assets
from tests.support.toolchain import output_of

TICKS = os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """Describe this machine as it is now: call it before any load of ours."""
    model = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "model": model[1] if model else platform.machine(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "kernel": platform.release(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def versions(*, kubernetes: bool = False) -> dict[str, str]:
    """Name what was measured, and on what it ran."""
    found = {
        "gpusession": version("gpu-session-operator"),
        "python": platform.python_version(),
        "redis": output_of(assets.redis_server(), "--version").strip(),
        "redis-py": version("redis"),
        **{name: version(name) for name in ("hiredis", "uvloop", "aiohttp")},
    }
    if kubernetes:
        binary = assets.kubernetes_assets() / "kube-apiserver"
        found["kubernetes"] = output_of(binary, "--version").strip()
    return found


def cpu_seconds(pid: int | None) -> float:
    """Read user and system time of a process and all its threads so far, to 10 ms."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS  # fields 14 and 15 of the whole line


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")
