"""What the product's Pods wrote, read from the nodes' disks: every container, the ended too.

kubelet removes the log of a Pod with the Pod. So each file is opened as soon as it is seen, by a
thread, and what is open can be read to its end whatever becomes of its name.
"""

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.cluster.installation import AGENTS, SYSTEM

LOOK_SECONDS = 0.3
"""A container that fails at its start lives for a second or so."""

_BAD_LEVELS = {"error", "critical"}


class ContainerLog:
    """One life of one container, as containerd writes it down."""

    def __init__(self, path: Path) -> None:
        pod = path.parent.parent.name.split("_")[1]
        self.container = f"{pod}/{path.parent.name}, life {path.stem}"
        self._file = path.open("rb")
        self._rest = b""
        self._begun = ""

    def new_lines(self) -> Iterator[str]:
        """Give the lines that are whole since the last call, without what containerd adds."""
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in whole:
            _, _, part, text = line.decode(errors="replace").split(" ", 3)
            self._begun += text
            if part == "F":  # the last part, or all of it; a line may be longer than 16 KiB
                yield self._begun
                self._begun = ""

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


class ProductLogs:
    """Follows the logs of all controllers, gateways and agents until the with block ends."""

    def __init__(self, node_folders: Iterable[Path]) -> None:
        self._folders = [folder / "log" / "pods" for folder in node_folders]
        self._logs: dict[Path, ContainerLog] = {}
        self._done = threading.Event()
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        for log in self._logs.values():
            log.close()

    def faults(self) -> list[str]:
        """Give what was written since the last call and tells of an error, and who wrote it."""
        self._open_new()
        with self._turn:
            return [
                f"{log.container}: {line}"
                for log in self._logs.values()
                for line in log.new_lines()
                if is_fault(line)
            ]

    def _follow(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            self._open_new()

    def _open_new(self) -> None:
        with self._turn:
            for path in self._paths():
                if path not in self._logs:
                    with suppress(FileNotFoundError):  # it went while we looked
                        self._logs[path] = ContainerLog(path)

    def _paths(self) -> Iterator[Path]:
        for folder in self._folders:
            for namespace in (SYSTEM, AGENTS):
                yield from folder.glob(f"{namespace}_gpusession-*/*/*.log")


def is_fault(line: str) -> bool:
    """Whether it is of level error, carries a traceback, or is not of our logging at all."""
    try:
        fields = json.loads(line)
    except ValueError:
        return True
    return fields.get("level") in _BAD_LEVELS or "exception" in fields
