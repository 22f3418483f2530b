"""Runs a command as if it had been started itself: its streams, signals and exit code."""

import asyncio
import signal
import sys
from collections.abc import Sequence

FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""What others send to a process to have it do something; the rest is the kernel's own."""

_BY_A_TERMINAL = frozenset({signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})

NOT_EXECUTABLE, NOT_FOUND, BY_SIGNAL = 126, 127, 128
"""Exit codes as shells have them; a death by signal n is BY_SIGNAL + n."""


class CannotStartError(Exception):
    """The command cannot be started; `code` is what a shell would exit with."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class Child:
    """A command to come; once it is made, signals to this process are kept for it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._early: list[int] = []
        self._process: asyncio.subprocess.Process | None = None
        loop = asyncio.get_running_loop()
        for number in FORWARDED:
            loop.add_signal_handler(number, self._forward, number)

    async def start(self) -> None:
        """Start the command, with the streams of this process; raises CannotStartError."""
        try:
            self._process = await asyncio.create_subprocess_exec(*self._command)
        except FileNotFoundError as error:
            raise CannotStartError(str(error), code=NOT_FOUND) from error
        except OSError as error:
            raise CannotStartError(str(error), code=NOT_EXECUTABLE) from error
        for number in self._early:
            self.signal(number)

    async def exit_code(self) -> int:
        """Wait for its end and say how it ended."""
        if self._process is None:
            raise RuntimeError("start it first")
        code = await self._process.wait()
        return code if code >= 0 else BY_SIGNAL - code

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self._process is None:
            self._early.append(number)
        elif self._process.returncode is None:
            self._process.send_signal(number)

    def _forward(self, number: int) -> None:
        # A terminal signals the whole foreground group: the command has it already.
        if not (number in _BY_A_TERMINAL and sys.stdin.isatty()):
            self.signal(number)
