"""`gpusession beat` as a shell starts it: a process of its own."""

import os
import sys
from pathlib import Path

from tests.support.client_rig import FakeGateway
from tests.support.processes import Process
from tests.support.toolchain import REPOSITORY


def beat(gateway: FakeGateway, workdir: Path, *words: str, command: str = "") -> Process:
    """Give the command line, not yet started, with a token file that holds token-0.

    `command` is a program for `python -c`, to run behind `--`.
    """
    token = workdir / "token"
    token.write_text("token-0\n")
    argv = [sys.executable, "-m", "gpusession", "beat", "--url", gateway.url]
    if "--session" not in words:
        argv += ["--token-file", os.fspath(token)]
    behind = ["--", sys.executable, "-c", command] if command else []
    path = os.pathsep.join([os.fspath(REPOSITORY / "operator"), os.environ.get("PYTHONPATH", "")])
    return Process(
        [*argv, *words, *behind],
        log=workdir / "beat.log",
        cwd=workdir,
        env={**os.environ, "PYTHONPATH": path},
    )
