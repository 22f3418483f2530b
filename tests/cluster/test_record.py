"""What a cluster wrote down is what another shell ends and removes, and nothing else."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.record import Record, end_processes
from tests.support.processes import start_time


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that runs until it is ended."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_another_shell_ends_what_was_noted(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """The file alone is enough to find the process and to end it."""
    Record(tmp_path / "record.json").add_process("sleeper", sleeper.pid)

    other = Record(tmp_path / "record.json")
    assert other.is_running("sleeper")
    other.end(["sleeper"])

    assert sleeper.wait(timeout=5) == -9
    assert Record(tmp_path / "record.json").processes == {}


def test_later_owner_of_a_pid_is_spared(sleeper: subprocess.Popen[bytes]) -> None:
    """A process with the pid and another start time is somebody else's."""
    born = start_time(sleeper.pid)
    assert born is not None

    end_processes([(sleeper.pid, born - 1)])

    assert sleeper.poll() is None


def test_only_empty_folders_of_our_own_are_removed(tmp_path: Path) -> None:
    """What was there before stays, and so does what somebody put something into."""
    (tmp_path / "old").mkdir()
    record = Record(tmp_path / "record.json")
    record.make_folder(tmp_path / "old" / "new" / "empty")
    record.make_folder(tmp_path / "old" / "used")
    (tmp_path / "old" / "used" / "file").touch()

    Record(tmp_path / "record.json").remove_folders()

    assert not (tmp_path / "old" / "new").exists()
    assert (tmp_path / "old" / "used" / "file").exists()
