"""Beside a command: what it does to the Session, and what the Session does to it."""

import os
import signal
from pathlib import Path

from tests.support.beat_command import beat
from tests.support.client_rig import FakeGateway
from tests.support.processes import wait_until

SLEEPS = "import time; open('began', 'w'); time.sleep(60)"
SAYS_SIGTERM = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
open('began', 'w')
time.sleep(60)
"""


def test_beats_come_while_the_command_runs(gateway: FakeGateway, tmp_path: Path) -> None:
    """And end with it, as a disconnect."""
    with beat(gateway, tmp_path, command="import time; time.sleep(2)") as process:
        assert process.wait(20) == 0

    assert gateway.count("frame", type="beat") > 2
    assert gateway.count("frame", type="close") == 0


def test_session_is_closed_on_exit_where_that_is_asked(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    """A job that is done frees its GPU at once; its exit code stays its own."""
    command = "import time; time.sleep(1); exit(7)"
    with beat(gateway, tmp_path, "--close-on-exit", command=command) as process:
        assert process.wait(20) == 7

    assert gateway.count("frame", type="close") == 1


def test_command_gets_sigterm_when_the_session_ends(gateway: FakeGateway, tmp_path: Path) -> None:
    """It may save its work before the agent comes."""
    with beat(gateway, tmp_path, command=SAYS_SIGTERM) as process:
        _wait_for_both(gateway, tmp_path)
        gateway.hang_up(4410, "Idle")
        assert process.wait(10) == 42


def test_sigterm_is_the_command_s_and_so_is_the_code(gateway: FakeGateway, tmp_path: Path) -> None:
    """The Pod is deleted: the command ends as it likes, then this does."""
    with beat(gateway, tmp_path, command=SAYS_SIGTERM) as process:
        _wait_for_both(gateway, tmp_path)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 42


def test_kept_command_goes_on_when_the_session_ends(gateway: FakeGateway, tmp_path: Path) -> None:
    """Where it is asked to leave the end to the agent."""
    command = "import time; open('began', 'w'); time.sleep(3); exit(7)"
    with beat(gateway, tmp_path, "--keep-command", command=command) as process:
        _wait_for_both(gateway, tmp_path)
        gateway.hang_up(4410, "Idle")
        assert process.wait(15) == 7


def test_refused_token_ends_no_command(gateway: FakeGateway, tmp_path: Path) -> None:
    """That nobody knows the token does not prove that the Session is over."""
    command = "import time; open('began', 'w'); time.sleep(3); exit(7)"
    with beat(gateway, tmp_path, command=command) as process:
        _wait_for_both(gateway, tmp_path)
        gateway.hang_up(4403)
        assert process.wait(15) == 7

    assert process.log_matches("goes on without a heartbeat")


def test_command_never_waits_for_a_gateway(gateway: FakeGateway, tmp_path: Path) -> None:
    """Work begins although the Session's record is not there yet."""
    gateway.rules(status=503)
    with beat(gateway, tmp_path, command="open('began', 'w'); exit(7)") as process:
        assert process.wait(15) == 7

    assert (tmp_path / "began").exists()


def test_busy_and_active_are_reported(gateway: FakeGateway, tmp_path: Path) -> None:
    """Both move the idle timeout, at once and again and again."""
    with beat(gateway, tmp_path, "--busy", "--activity", command=SLEEPS):
        wait_until(
            lambda: gateway.count("frame", type="activity") >= 4, timeout=15, what="activities"
        )
    leases = [frame.get("busySeconds", 0) for frame in gateway.seen("frame", type="activity")]

    assert max(leases) > 100
    assert sum(lease == 0 for lease in leases) >= 3


def test_beats_go_on_over_a_killed_gateway(gateway: FakeGateway, tmp_path: Path) -> None:
    """The command notices nothing."""
    with beat(gateway, tmp_path, command=SLEEPS) as process:
        _wait_for_both(gateway, tmp_path)
        gateway.process.kill()
        gateway.start()
        wait_until(lambda: gateway.count("connect") == 2, timeout=15, what="a second connection")

        assert process.running
        process.signal(signal.SIGTERM)


def _wait_for_both(gateway: FakeGateway, workdir: Path) -> None:
    wait_until((workdir / "began").exists, timeout=15, what="the command")
    wait_until(lambda: gateway.count("frame", type="beat"), timeout=15, what="a beat")
