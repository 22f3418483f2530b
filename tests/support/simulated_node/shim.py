"""Runs a container's program and ends when every process that came of it is gone.

    python -I -S shim.py PARENT_PID LOG_FILE WORKING_DIR PROGRAM [ARGUMENT...]

It stands outside the container's cgroup and adopts orphans, as containerd-shim does, and
says `exited CODE` on stdout when the program has ended. SIGUSR1 asks the program to end.
SIGTERM kills everything; the kernel sends it too when the parent dies. The parent starts
it with WATCHED blocked, so that no signal comes too early.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

WATCHED = {signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM}
CANNOT_RUN = 127
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

prctl = ctypes.CDLL(None).prctl


def report(line: str) -> None:
    """Tell the kubelet, if it still lives."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{line}\n".encode())


def start(log: str, working_dir: str, argv: list[str]) -> int:
    """Fork the program; should this shim be killed, its first process dies too."""
    shim = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(working_dir)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        if os.getppid() == shim:
            os.execvp(argv[0], argv)  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(2, f"cannot run {argv[0]}: {error}\n".encode())
    os._exit(CANNOT_RUN)


def reap(main_pid: int) -> bool:
    """Collect the dead, say so if the program is among them; False when no child is left."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid == main_pid:
            code = os.waitstatus_to_exitcode(status)
            report(f"exited {code if code >= 0 else 128 - code}")


def kill_children() -> None:
    """SIGKILL the direct children, whose pids nobody else can free; their orphans come next."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii")
    for pid in children.split():
        os.kill(int(pid), signal.SIGKILL)


def ask_to_end(main_pid: int) -> None:
    """SIGTERM to the program, if it is not collected yet."""
    with contextlib.suppress(ChildProcessError):
        if os.waitid(os.P_PID, main_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(main_pid, signal.SIGTERM)


def main() -> None:
    """Start the program and wait for signals."""
    parent, log, working_dir, *argv = sys.argv[1:]
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the kubelet is gone")
    main_pid = start(log, working_dir, argv)
    kills = False
    while reap(main_pid):
        if kills:
            kill_children()
        number = signal.sigwaitinfo(WATCHED).si_signo
        kills = kills or number == signal.SIGTERM
        if number == signal.SIGUSR1:
            ask_to_end(main_pid)


if __name__ == "__main__":
    main()
