"""The example of the README is a program that works."""

import os
import re
import sys
from pathlib import Path

from tests.support.client_rig import FakeGateway
from tests.support.processes import Process
from tests.support.toolchain import REPOSITORY


def _example(gateway: FakeGateway, token_file: Path) -> str:
    """Give the README's only Python block, on this gateway and with this token."""
    (text,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (address,) = re.findall(r'GATEWAY = "(.*)"', text)
    identity = 'KubernetesIdentity("default", "chat"'
    assert identity in text
    there = text.replace(address, gateway.url)
    return there.replace(identity, f"{identity}, token_file={os.fspath(token_file)!r}")


def test_example_of_the_readme_ends_its_session(gateway: FakeGateway, tmp_path: Path) -> None:
    """It gets a token, reports an activity, is busy, and closes."""
    token_file = tmp_path / "kube-token"
    token_file.write_text("kube-0")
    argv = [sys.executable, "-c", _example(gateway, token_file)]
    with Process(argv, log=tmp_path / "example.log", cwd=REPOSITORY / "operator") as example:
        assert example.wait(15) == 0, example.log_tail()

    kinds = [frame["type"] for frame in gateway.seen("frame") if frame["type"] != "beat"]
    assert kinds == ["activity", "activity", "close"]
