"""Runs kubectl apart from the user's own settings."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import ProcessFailedError


@dataclass(frozen=True, slots=True)
class Kubectl:
    """One kubectl, towards one cluster: call it like a function."""

    program: Path
    kubeconfig: Path
    cache: Path
    prefix: tuple[str, ...] = ()
    """What starts it, such as nsenter."""

    def command(
        self, *arguments: str | os.PathLike[str], kubeconfig: Path | None = None
    ) -> list[str | os.PathLike[str]]:
        """Give the whole command line, as admin or with another kubeconfig."""
        own = [f"--kubeconfig={kubeconfig or self.kubeconfig}", f"--cache-dir={self.cache}"]
        return [*self.prefix, self.program, *own, *arguments]

    def __call__(
        self,
        *arguments: str | os.PathLike[str],
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        check: bool = True,
        kubeconfig: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; raises ProcessFailedError, with what it said, where it fails."""
        done = subprocess.run(
            self.command(*arguments, kubeconfig=kubeconfig),
            input=input,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"KUBERC": "off", "GOGC": "off"},  # too short-lived to collect
        )
        if check and done.returncode:
            raise ProcessFailedError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr}")
        return done
