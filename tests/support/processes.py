"""Starts the programs of the harness and sees to it that every one of them ends.

Each runs in a session of its own with its output in a log file. Signals go to the whole
group, and only while the recorded start time shows that the pid still is ours.
"""

import fcntl
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Self

POLL_SECONDS = 0.02
"""Fine enough that polling adds nothing to a start-up measured in tenths of a second."""

# Runs between fork and exec. A parent that died before prctl can no longer send the signal,
# so that case is looked for; Python ignores SIGPIPE and SIGXFSZ, and exec would hand that on.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.argv[1] != "0":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the harness is gone")
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[2]}: {error}")
"""


class ProcessFailedError(RuntimeError):
    """A program ended, or a wait ran out; the message carries the tail of its log."""


@cache
def _launcher_thread() -> ThreadPoolExecutor:
    """Give the one thread that forks.

    PR_SET_PDEATHSIG fires when the forking *thread* ends, so a short-lived worker thread
    would take its programs with it. This one lives as long as the harness.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="launcher")


def start_time(pid: int) -> int | None:
    """Read when a process began, in clock ticks since boot; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])  # field 22; the name may hold spaces


def free_port() -> int:
    """Pick a loopback TCP port that nobody listens on, and that nobody else has picked.

    It lies below the ephemeral range where there is room: a client that retries against a
    closed ephemeral port can be given that very port and connect to itself. What is picked is
    not bound yet, and may be picked for two programs of which the one answers for the other: so
    each port is given out once, and runs side by side note theirs in one file.
    """
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    candidates = range(min(20000, low), low)
    for port in [*random.sample(candidates, k=min(20, len(candidates))), 0]:
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            found = int(listener.getsockname()[1])
            if reserve_port(found):
                return found
    raise ProcessFailedError("no free port on 127.0.0.1")


_PORTS: set[int] = set()
"""What this process has picked: a lock keeps out other processes only."""


@cache
def _port_book() -> int:
    path = Path(tempfile.gettempdir()) / f"gpusession-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def reserve_port(port: int) -> bool:
    """Keep a port for this process until it ends; False if it was given out before.

    A byte of a file stands for each port and is locked; the kernel unlocks it whatever happens.
    """
    if port in _PORTS:
        return False
    try:
        fcntl.lockf(_port_book(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _PORTS.add(port)
    return True


class Process:
    """One program: started, watched, ended; it may be started again afterwards.

    One that outlives this process is for those who write down its pid and start time.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        outlives: bool = False,
    ) -> None:
        self.argv = [os.fspath(part) for part in argv]
        self.name = Path(self.argv[0]).name
        self.log = log
        self.pid: int | None = None
        self.started: int | None = None
        self._env = dict(env) if env is not None else None
        self._cwd = cwd
        self._outlives = outlives
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def behind(self, *prefix: str) -> "Process":
        """Give the same program, to be started by another one such as `unshare`."""
        return Process(
            [*prefix, *self.argv],
            log=self.log,
            env=self._env,
            cwd=self._cwd,
            outlives=self._outlives,
        )

    def start(self) -> None:
        """Start the program; its output is appended to the log."""
        if self._child is not None:
            raise ProcessFailedError(f"{self.name} was started already")
        self._child = _launcher_thread().submit(self._spawn).result()
        self.pid = self._child.pid
        self.started = start_time(self.pid)

    def _spawn(self) -> subprocess.Popen[bytes]:
        parent = 0 if self._outlives else os.getpid()
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(parent)]
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [*launcher, *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._env,
                cwd=self._cwd,
            )

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.pid is not None and self.exit_code() is None

    def exit_code(self) -> int | None:
        """Tell how it ended, negative for a signal; None while it runs or before it started.

        The child is left unreaped, so its pid, and with it the group, stays reserved.
        """
        if self._child is None or self.pid is None:
            return None
        if self._child.returncode is not None:
            return self._child.returncode
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def signal(self, number: int) -> bool:
        """Send a signal to the whole group; False if the group is no longer ours or empty."""
        if self.pid is None or self.started is None or start_time(self.pid) != self.started:
            return False
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def pause(self) -> None:
        """Freeze the program: its connections stay open and nothing answers.

        It returns once every thread stands still, which on a busy machine is not at once.
        """
        if self.signal(signal.SIGSTOP) and self.pid is not None:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused program go on."""
        self.signal(signal.SIGCONT)

    def wait(self, timeout: float) -> int:
        """Wait for the program to end by itself and return its exit code."""
        wait_until(lambda: not self.running, timeout=timeout, what=f"{self.name} to end")
        return self.exit_code() or 0

    def stop(self, term_timeout: float = 5.0) -> None:
        """End the program: SIGTERM, then SIGKILL for whatever is left of its group."""
        if self.running and self.signal(signal.SIGTERM):
            self.resume()
            deadline = time.monotonic() + term_timeout
            while self.running and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        """SIGKILL the whole group and collect the child; harmless when it is gone already."""
        if self._child is None:
            return
        self.signal(signal.SIGKILL)
        self._child.wait()
        self._child = self.pid = self.started = None

    def log_tail(self, lines: int = 15) -> str:
        """Give the last lines of the log for an error message."""
        return tail(self.log, lines)

    def log_matches(self, pattern: str) -> bool:
        """Whether the log holds a text that matches."""
        return (
            re.search(pattern, self.log.read_text(encoding="utf-8", errors="replace")) is not None
        )


def tail(log: Path, lines: int = 15) -> str:
    """Give the last lines of a log; nothing where it is not written yet."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def wait_until(
    predicate: Callable[[], object],
    *,
    timeout: float,
    what: str,
    processes: Iterable[Process] = (),
    period: float = POLL_SECONDS,
) -> None:
    """Poll until the predicate is true, for at most timeout seconds.

    Raises ProcessFailedError, with the log's tail, as soon as one of the processes has
    ended or when the time is up.
    """
    watched = list(processes)
    deadline = time.monotonic() + timeout
    while not predicate():
        ended = [process for process in watched if not process.running]
        if not ended and time.monotonic() < deadline:
            time.sleep(period)
            continue
        why = f"{ended[0].name} ended" if ended else f"{timeout:g} s passed"
        tails = "".join(f"\n--- {p.log}\n{p.log_tail()}" for p in ended or watched)
        raise ProcessFailedError(f"waiting for {what}: {why}{tails}")
