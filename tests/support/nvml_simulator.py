"""Builds the NVML simulator, describes nodes to it, and holds simulated GPU memory.

A test or demo describes a node with SimulatedNode; a workload calls `hold` on itself, or
this file runs as a program that holds memory until it dies. tests/support/nvml_sim/node.h
documents the files in between. Nothing here imports pynvml or the product.
"""

import argparse
import fcntl
import hashlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).parent / "nvml_sim"
LIBRARY = "libnvidia-ml.so.1"

HANG_MS = 3_600_000
"""Longer than any test: a call that hangs returns when the rule is taken away."""

_SIZE_UNKNOWN = 2**64 - 1
"""What NVML says, in place of a size, of a process whose size it cannot tell."""

_FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared")


def build_nvml_simulator(out_dir: Path, *, cc: Sequence[str]) -> Path:
    """Compile the simulator into out_dir, unless the library there has these very sources."""
    sources = sorted(SOURCES.glob("*.[ch]"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    library, stamp = out_dir / LIBRARY, out_dir / "sources.sha256"
    if library.exists() and stamp.exists() and stamp.read_text() == digest:
        return library
    out_dir.mkdir(parents=True, exist_ok=True)
    fresh = out_dir / f".{LIBRARY}.{secrets.token_hex(4)}"
    programs = [str(source) for source in sources if source.suffix == ".c"]
    flags = [*_FLAGS, "-fvisibility=hidden", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([*cc, *flags, "-o", str(fresh), *programs], check=True)
    fresh.rename(library)
    _replace(stamp, digest)
    return library


def environment(state_dir: Path, lib_dir: Path) -> dict[str, str]:
    """Give what a new process needs to see a node, which may be another program's, by NVML."""
    return {"LD_LIBRARY_PATH": str(lib_dir), "NVML_SIMULATOR_STATE": str(state_dir)}


class SimulatedNode:
    """One node's GPUs as a directory; processes that look at the node read it at every call."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        for folder in ("allocations", "locks"):
            (state_dir / folder).mkdir(parents=True, exist_ok=True)
        devices = state_dir / "devices"
        self._devices = devices.read_text().splitlines() if devices.exists() else []
        self._faults: list[str] = []
        self._hides = False
        self._write_devices()

    def add_device(
        self,
        uuid: str,
        *,
        name: str = "NVIDIA Simulated GPU",
        total_bytes: int = 80 * 2**30,
        base_bytes: int = 512 * 2**20,
    ) -> str:
        """Plug in a GPU that has base_bytes in use before any process; give its uuid."""
        minor = len(self._devices)
        bus_id = f"00000000:{0x10 + minor:02X}:00.0"
        fields = (uuid, name, minor, bus_id, total_bytes, base_bytes)
        self._devices.append("\t".join(str(field) for field in fields))
        self._write_devices()
        return uuid

    def inject(self, symbol: str, *, uuid: str = "*", rc: int = 0, delay_ms: int = 0) -> None:
        """Let a symbol (or *) wait, then return rc; the first matching rule counts."""
        self._faults.append(f"{symbol} {uuid} return {rc} {delay_ms}")
        self._write_faults()

    def hang(self, symbol: str, *, uuid: str = "*") -> None:
        """Let a symbol (or *) not return before clear_faults."""
        self.inject(symbol, uuid=uuid, delay_ms=HANG_MS)

    def answer_stale(self, symbol: str) -> None:
        """Let a symbol give samples that are older than asked for, as some drivers do."""
        self._faults.append(f"{symbol} * stale 0 0")
        self._write_faults()

    def clear_faults(self) -> None:
        """Take all injected faults away; calls that wait on one go on and answer truly."""
        self._faults.clear()
        self._write_faults()

    def hide_processes(self, *, hide: bool = True) -> None:
        """Empty every process list with success: the driver's answer to a foreign pid namespace."""
        self._hides = hide
        self._write_faults()

    def set_lag(self, lag_ms: int) -> None:
        """Let memory outlive the first look at its dead process by this long."""
        _replace(self.state_dir / "lag_ms", f"{lag_ms}\n")

    def environment(self, lib_dir: Path) -> dict[str, str]:
        """Give what a new process needs in its environment to see this node through NVML."""
        return environment(self.state_dir, lib_dir)

    def _write_devices(self) -> None:
        _replace(self.state_dir / "devices", "".join(f"{line}\n" for line in self._devices))

    def _write_faults(self) -> None:
        rules = [*self._faults, *(["* * hide 0 0"] if self._hides else [])]
        _replace(self.state_dir / "faults", "".join(f"{rule}\n" for rule in rules))


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot: with the pid, its identity."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def hold(state_dir: Path, uuid: str, size: int | None, *, kind: str = "compute") -> Path:
    """Let the calling process hold memory of a GPU until it dies or gives the row back.

    None as the size is memory that NVML cannot measure. Give the row to release_hold.
    """
    pid = os.getpid()
    born = start_time(pid)
    token = secrets.token_hex(4)
    _lock(state_dir / "locks" / f"{pid}-{born}-{token}")
    return write_row(state_dir, uuid, size, kind=kind, pid=pid, born=born, token=token)


def write_row(
    state_dir: Path,
    uuid: str,
    size: int | None,
    *,
    kind: str,
    pid: int,
    born: int,
    token: str = "",
) -> Path:
    """Say that a process holds memory, as of this pid namespace; `hold` is for workloads."""
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    held = _SIZE_UNKNOWN if size is None else size
    row = state_dir / "allocations" / f"{pid}-{born}-{token or secrets.token_hex(4)}"
    whole_gpu = 2**32 - 1
    _replace(row, f"{uuid} {kind} {pid} {born} {held} {whole_gpu} {whole_gpu} {namespace}\n")
    return row


def work(row: Path, percent: int, *, engine: str = "sm") -> None:
    """Let the process behind a row use an engine of its GPU, sm or decoder, from now on."""
    state_dir = row.parents[1]
    uuid, _kind, pid, *_, namespace = row.read_text().split()
    log = state_dir / "work" / row.name
    log.parent.mkdir(exist_ok=True)
    earlier = log.read_text() if log.exists() else f"{uuid} {pid} {namespace}\n"
    _replace(log, f"{earlier}{time.time_ns() // 1000} {percent} {engine}\n")


def release_hold(row: Path) -> None:
    """Give back what `hold` took, as a workload does that frees memory and lives on."""
    row.unlink(missing_ok=True)
    lock = row.parents[1] / "locks" / row.name
    lock.unlink(missing_ok=True)
    if lock in _locks:
        os.close(_locks.pop(lock))


_locks: dict[Path, int] = {}
"""The descriptors whose locks tell other pid namespaces that this process lives."""


def _lock(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    _locks[path] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.lockf(_locks[path], fcntl.LOCK_EX)


def _replace(path: Path, text: str) -> None:
    """Write a file that readers see whole or not at all."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fresh.write_text(text)
    fresh.rename(path)


def main() -> None:
    """Hold memory until killed: the smallest workload."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("uuid")
    parser.add_argument("size", type=int)
    parser.add_argument("--kind", default="compute", choices=["compute", "graphics", "mps"])
    asked = parser.parse_args()
    hold(asked.state_dir, asked.uuid, asked.size, kind=asked.kind)
    print("holding", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
