"""A command is started, signalled and judged as by a shell."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.client_rig import until

from gpusession.client.child import FORWARDED, CannotStartError, Child

TELLS_SIGNALS = """
trap 'exit 51' TERM
trap 'exit 52' USR1
trap 'exit 53' HUP
touch began
while :; do sleep 0.05; done
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the folder in which the commands run, and take the signals back afterwards."""
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in FORWARDED}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


async def _exit_code(*command: str) -> int:
    child = Child(command)
    await child.start()
    return await child.exit_code()


@pytest.mark.parametrize("code", [0, 1, 255])
async def test_exit_code_is_passed_on(code: int) -> None:
    """Whoever started it sees the command's own."""
    assert await _exit_code("sh", "-c", f"exit {code}") == code


async def test_death_by_signal_is_told_as_a_shell_does() -> None:
    """128 and the signal's number."""
    assert await _exit_code("sh", "-c", "kill -9 $$") == 137


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 51), (signal.SIGUSR1, 52), (signal.SIGHUP, 53)]
)
async def test_signals_are_forwarded(folder: Path, number: signal.Signals, code: int) -> None:
    """The container's first process is the only one that kubelet signals."""
    child = Child(["sh", "-c", TELLS_SIGNALS])
    await child.start()
    await until((folder / "began").exists, "the command")

    os.kill(os.getpid(), number)

    assert await child.exit_code() == code


async def test_signal_before_the_start_is_kept_for_the_command() -> None:
    """A pod may be deleted in the moment in which it begins."""
    child = Child(["sleep", "60"])
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    await child.start()

    assert await child.exit_code() == 128 + signal.SIGTERM


async def test_signal_after_the_end_is_nobodys() -> None:
    """The pid may be somebody else's by then."""
    child = Child(["true"])
    await child.start()
    assert await child.exit_code() == 0

    child.signal(signal.SIGTERM)


@pytest.mark.parametrize(("program", "code"), [("/nowhere/x", 127), ("/etc/hostname", 126)])
async def test_command_that_cannot_start_is_told_as_a_shell_does(program: str, code: int) -> None:
    """127 is not found, 126 is not executable."""
    with pytest.raises(CannotStartError) as refused:
        await Child([program]).start()

    assert refused.value.code == code
