"""What README tells people to type on the real cluster: `up` prints it, and the tests run it."""

import re
import subprocess

from tests.support.processes import ProcessFailedError
from tests.support.toolchain import REPOSITORY

_SECTION = re.compile(r"^## On a real cluster$(.*?)^## ", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MAKE = re.compile(r"^make .*\n", re.MULTILINE)
"""These bring the cluster up and take it down; whoever runs the rest has done that already."""


def installing() -> str:
    """Give the lines that put the operator on a cluster that is up."""
    return _blocks()[0]


def trying() -> str:
    """Give the lines with which Sessions begin and end."""
    return _blocks()[1]


def typed(lines: str) -> str:
    """Type lines into a shell in this folder, to their end; give what they said.

    It is a shell in which README's `export` was typed before. Raises ProcessFailedError, with
    all that was said, as soon as one of them fails.
    """
    (export,) = re.findall(r"^export .*$", installing(), re.MULTILINE)
    done = subprocess.run(
        ["bash", "-eux", "-o", "pipefail", "-c", f"{export}\n{lines}"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ProcessFailedError(f"as README says:\n{done.stdout}")
    return done.stdout


def _blocks() -> list[str]:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (section,) = _SECTION.findall(text)
    return [_MAKE.sub("", block) for block in _BLOCK.findall(section)]
