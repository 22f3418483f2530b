"""Programs that the harness starts: they end with it, and only they are signalled."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.processes import (
    Process,
    ProcessFailedError,
    free_port,
    reserve_port,
    start_time,
    wait_until,
)
from tests.support.toolchain import REPOSITORY

HARNESS = """
import time
from pathlib import Path
from tests.support.processes import Process
process = Process(["sleep", "600"], log=Path("/dev/null"))
process.start()
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Give a place for a program's output."""
    return tmp_path / "program.log"


@pytest.fixture
def sleeper(log: Path) -> Iterator[Process]:
    """Give a program that runs until it is ended."""
    with Process(["sleep", "600"], log=log) as process:
        yield process


def ended(pid: int) -> bool:
    """Whether a process is gone or waits to be collected."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def test_killed_harness_leaves_no_process() -> None:
    """SIGKILL of the harness takes every program that it started with it."""
    harness = subprocess.Popen(
        [sys.executable, "-c", HARNESS], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    with harness:
        pid = int(harness.stdout.readline())

        harness.kill()

    wait_until(lambda: ended(pid), timeout=5, what="the orphan to end")


def test_program_that_outlives_stays_behind_a_killed_harness() -> None:
    """Whoever asks for it has to end it, by the pid and start time that it wrote down."""
    script = HARNESS.replace('log=Path("/dev/null")', 'log=Path("/dev/null"), outlives=True')
    harness = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    with harness:
        pid = int(harness.stdout.readline())

        harness.kill()

    assert not ended(pid)
    os.kill(pid, signal.SIGKILL)


def test_stop_ends_the_whole_group(log: Path) -> None:
    """Children of a stopped program do not stay behind, even if they ignore SIGTERM."""
    script = "trap '' TERM; sleep 600 & echo $!; trap - TERM; wait"
    process = Process(["sh", "-c", script], log=log)
    process.start()
    wait_until(lambda: log.read_text().endswith("\n"), timeout=5, what="the child's pid")

    process.stop()

    wait_until(lambda: ended(int(log.read_text())), timeout=5, what="the child to end")


def test_stop_is_not_held_up_by_a_deaf_program(log: Path) -> None:
    """A program that ignores SIGTERM is killed when its time is up."""
    process = Process(["sh", "-c", "trap '' TERM; echo deaf; sleep 600"], log=log)
    process.start()
    wait_until(lambda: process.log_matches("deaf"), timeout=5, what="the trap")
    pid = process.pid

    process.stop(term_timeout=0.1)

    assert start_time(pid) is None


def test_reused_pid_is_never_signalled(sleeper: Process) -> None:
    """With another start time the pid belongs to somebody else: nothing is sent."""
    ours, sleeper.started = sleeper.started, 1

    delivered = sleeper.signal(signal.SIGKILL)

    sleeper.started = ours
    assert not delivered
    assert sleeper.running


def test_signals_have_their_defaults(log: Path) -> None:
    """A started program dies of a broken pipe as it would in a shell."""
    with Process(["grep", "SigIgn", "/proc/self/status"], log=log) as process:
        process.wait(5)

    ignored = int(log.read_text().split()[1], 16)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # whoever runs the tests may ignore others
        assert not ignored & 1 << number - 1


def test_program_starts_again_after_a_stop(sleeper: Process) -> None:
    """One Process is one program over many lives."""
    first = sleeper.pid
    sleeper.stop()

    sleeper.start()

    assert sleeper.running
    assert sleeper.pid != first


def test_wait_fails_as_soon_as_the_program_has_ended(log: Path) -> None:
    """A crash is reported at once, by name and with its last words."""
    with Process(["sh", "-c", "echo no licence; exit 3"], log=log) as process:
        with pytest.raises(ProcessFailedError, match="no licence"):
            wait_until(lambda: False, timeout=15, what="an answer", processes=[process])

        assert process.exit_code() == 3


def test_missing_program_says_so(log: Path) -> None:
    """A program that is not there ends with its name in the log."""
    with Process(["no-such-program"], log=log) as process:
        assert process.wait(5) == 1

    assert "cannot run no-such-program" in log.read_text()


def test_free_port_avoids_the_ephemeral_range() -> None:
    """A client that retries a closed port must not meet itself there."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if low <= 20000:
        pytest.skip("this machine's ephemeral range leaves no room below it")

    assert free_port() < low


def test_port_that_was_picked_is_given_to_nobody_else() -> None:
    """Neither to another part of this run, nor to a run beside it, before anybody binds it."""
    port = free_port()
    program = f"from tests.support.processes import reserve_port; print(reserve_port({port}))"
    beside = [sys.executable, "-c", program]

    said = subprocess.run(beside, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    assert said.strip() == "False"
    assert not reserve_port(port)


def test_start_time_tells_processes_apart(sleeper: Process) -> None:
    """A pid's start time is what /proc says and differs from an older process's."""
    assert sleeper.started == start_time(sleeper.pid)
    assert sleeper.started > start_time(os.getpid())
