"""What exists because of a cluster, in a file: another shell takes it down by that alone.

A process is named by its pid and start time, so no later owner of the pid is ever hit.
"""

import json
import os
import select
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tests.support.processes import Process, start_time

END_SECONDS = 30.0
"""The kernel ends a whole node in two seconds; a busy machine takes longer."""

Identity = tuple[int, int]


class Record:
    """The processes and folders of one cluster; every change is on disk when a call returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self.processes: dict[str, Identity] = {
            name: (pid, born) for name, (pid, born) in content.get("processes", {}).items()
        }
        self._lock = threading.Lock()
        self.folders: list[str] = content.get("folders", [])

    def add_process(self, name: str, pid: int) -> None:
        """Note a process that was just started."""
        born = start_time(pid)
        if born is not None:
            self.processes[name] = (pid, born)
            self._write()

    def add_started(self, processes: Iterable[Process]) -> None:
        """Note programs that run."""
        for process in processes:
            if process.pid is not None:
                self.add_process(process.name, process.pid)

    def make_folder(self, path: Path) -> None:
        """Make a folder outside the cluster's own, and its parents; note those that are new."""
        for folder in (*reversed(path.parents), path):
            if not folder.exists():
                folder.mkdir()
                self.folders.append(str(folder))
                self._write()

    def remove_folders(self) -> None:
        """Remove the folders that were made, unless somebody put something into them."""
        for folder in reversed(self.folders):
            with suppress(OSError):
                Path(folder).rmdir()
        self.folders.clear()

    def is_running(self, name: str) -> bool:
        """Whether the very process that was noted still runs."""
        pid, born = self.processes.get(name, (0, -1))
        return start_time(pid) == born

    def end(self, names: Iterable[str]) -> None:
        """Kill processes that were noted, all at once, and wait until they are gone."""
        names = list(names)
        end_processes(self.processes[name] for name in names if name in self.processes)
        for name in names:
            self.processes.pop(name, None)
        if self.path.parent.exists():
            self._write()

    def _write(self) -> None:
        fresh = self.path.with_suffix(".new")
        with self._lock:
            content = {"processes": self.processes, "folders": self.folders}
            fresh.write_text(json.dumps(content, indent=2), encoding="utf-8")
            fresh.rename(self.path)


def end_processes(identities: Iterable[Identity]) -> None:
    """Kill exactly these processes and wait until the last one is gone."""
    handles = [handle for identity in identities if (handle := _open(identity)) is not None]
    try:
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        _wait_for(handles)
    finally:
        for handle in handles:
            os.close(handle)


def _open(identity: Identity) -> int | None:
    pid, born = identity
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) == born:  # looked up after the handle is there, so it is of this process
        return handle
    os.close(handle)
    return None


def _wait_for(handles: Iterable[int]) -> None:
    alive, give_up_at = set(handles), time.monotonic() + END_SECONDS
    while alive and time.monotonic() < give_up_at:
        ended, _, _ = select.select(alive, [], [], 1.0)
        alive.difference_update(ended)
