"""Starts a container under its shim, again after an exit where asked, and ends it.

A container here is a tree of real processes without any isolation. It counts as exited
when the last process of the tree is gone.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.simulated_node import shim
from tests.support.simulated_node.process_files import ProcessFiles

READY_SECONDS = 0.01
"""How often a starting workload's log is read for its `ready`."""

BACKOFF_SECONDS = 1.0
"""Between an exit and the restart; kubelet begins with 10 s."""

UNKNOWN_EXIT = 255
"""What containerd says of a container whose end it has not seen."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a container runs; `says_ready` if it must print `ready` before it counts as up."""

    argv: Sequence[str]
    env: Mapping[str, str]
    working_dir: str
    says_ready: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """How one run of a container ended."""

    container_id: str
    exit_code: int
    began: float
    ended: float


class ShimProcess:
    """A shim as seen by its parent; it has exited when its whole tree is gone."""

    def __init__(self, program: Program, *, log: Path, groups: Path) -> None:
        loop = asyncio.get_running_loop()
        self.exit_code = UNKNOWN_EXIT
        self._exited = asyncio.Event()
        argv = [sys.executable, "-I", "-S", shim.__file__, str(os.getpid()), str(log)]
        # The shim inherits the mask: a signal sent before it listens waits for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, shim.WATCHED)
        try:
            self._child = subprocess.Popen(
                [*argv, program.working_dir, *program.argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env=program.env,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.pid = self._child.pid
        self._group = groups / str(self.pid)
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        self._group.write_text(f"{stat.rpartition(')')[2].split()[19]}\n")
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self._pidfd, self._collect)

    @property
    def has_exited(self) -> bool:
        """Whether no process is left."""
        return self._exited.is_set()

    async def wait(self) -> int:
        """Wait for the last process and give the exit code of the first."""
        await self._exited.wait()
        return self.exit_code

    def ask_to_end(self) -> None:
        """SIGTERM to the container's first process."""
        self._child.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """SIGKILL to all of its processes, until none is left."""
        self._child.send_signal(signal.SIGTERM)

    def _collect(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        report, _ = self._child.communicate()
        self._group.unlink()
        word, _, code = report.decode().strip().partition(" ")
        if word == "exited":
            self.exit_code = int(code)
        self._exited.set()


def _says_ready(log: Path) -> bool:
    return log.exists() and b"ready" in log.read_bytes().splitlines()


class Container:
    """One container of a Pod over all its restarts; its fields say how it stands."""

    def __init__(
        self,
        name: str,
        program: Program,
        *,
        cgroup: Path,
        logs: Path,
        files: ProcessFiles,
        groups: Path,
    ) -> None:
        self.name = name
        self.id = ""
        self.is_up = False
        self.has_been_up = False
        self.began = 0.0
        self.restarts = 0
        self.ending: Ending | None = None
        self.will_restart = False
        self._program = program
        self._pod_cgroup = cgroup
        self._logs = logs
        self._files = files
        self._groups = groups
        self._shim: ShimProcess | None = None
        self._stopping = asyncio.Event()

    async def run(
        self, *, restarts_after: Callable[[int], bool], on_change: Callable[[], None]
    ) -> None:
        """Run to the last exit: `restarts_after` an exit code says whether it is the last."""
        while not self._stopping.is_set():
            self.ending, self.will_restart = await self._run_once(on_change), False
            self.will_restart = restarts_after(self.ending.exit_code)
            if not self.will_restart:
                return
            on_change()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BACKOFF_SECONDS):
                    await self._stopping.wait()
                self.will_restart = False
                return
            self.restarts += 1

    def resume(self, ending: Ending, restarts: int) -> None:
        """Take over from before a reboot, which ended the container."""
        self.ending, self.restarts = ending, restarts

    def stop(self) -> None:
        """Ask it to end, and do not restart it."""
        self._stopping.set()
        if self._shim is not None:
            self._shim.ask_to_end()

    def kill(self) -> None:
        """End it now, and do not restart it."""
        self._stopping.set()
        if self._shim is not None:
            self._shim.kill()

    @property
    def is_running(self) -> bool:
        """Whether it has processes."""
        return self._shim is not None

    async def _run_once(self, on_change: Callable[[], None]) -> Ending:
        self.id, self.began = secrets.token_hex(32), time.time()
        log = self._logs / f"{self.restarts}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        process = self._shim = ShimProcess(self._program, log=log, groups=self._groups)
        try:
            self._files.add(self.id, cgroup=self._pod_cgroup / self.id, shim=process.pid)
            await self._wait_up(process, log)
            if not process.has_exited:
                self._files.refresh(self.id)
                self.is_up = self.has_been_up = True
                on_change()
            await process.wait()
        finally:
            process.kill()
            exit_code = await process.wait()
            self.is_up, self._shim = False, None
            self._files.remove(self.id)
        return Ending(self.id, exit_code, self.began, time.time())

    async def _wait_up(self, process: ShimProcess, log: Path) -> None:
        while self._program.says_ready and not process.has_exited:
            if _says_ready(log):
                return
            await asyncio.sleep(READY_SECONDS)
