"""The kernel itself says whether kubelet's pids are ours."""

import asyncio
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.toolchain import REPOSITORY

from gpusession.agent.pid_namespace import PidNamespace

TIMEOUT = timedelta(seconds=1)

ASK = """
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from gpusession.agent.pid_namespace import PidNamespace
print(asyncio.run(PidNamespace(Path(sys.argv[1]), timeout=timedelta(seconds=5)).doubt()))
"""


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Path]:
    """Give a socket that this very process listens on."""
    path = tmp_path / "kubelet.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield path


async def test_a_listener_whose_pid_we_see_is_proof(kubelet: Path) -> None:
    """The peer's pid is not 0."""
    assert await PidNamespace(kubelet, timeout=TIMEOUT).doubt() is None


async def test_from_another_pid_namespace_there_is_no_proof(kubelet: Path) -> None:
    """There the kernel shows pid 0, as to an agent without hostPID."""
    argv = ("unshare", "--pid", "--fork", "--user", "--map-root-user", sys.executable, "-c", ASK)
    inside = await asyncio.create_subprocess_exec(
        *argv,
        str(kubelet),
        env={"PYTHONPATH": str(REPOSITORY / "operator"), "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await inside.communicate()
    if inside.returncode and b"unshare failed" in complaint:
        pytest.skip(f"no new pid namespace here: {complaint.decode().strip()}")

    assert "hostPID" in said.decode()


async def test_without_a_socket_there_is_no_proof(tmp_path: Path) -> None:
    """Kubelet is away, or the mount is missing: the reason is named."""
    doubt = await PidNamespace(tmp_path / "none.sock", timeout=TIMEOUT).doubt()

    assert doubt is not None
    assert "none.sock" in doubt


async def test_a_listener_that_does_not_accept_costs_the_timeout_at_most(tmp_path: Path) -> None:
    """A stuck kubelet with a full backlog is no proof, and wedges nobody."""
    path = tmp_path / "stuck.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for client in waiting:
            client.settimeout(0)
            client.connect_ex(str(path))
        async with asyncio.timeout(3):
            doubt = await PidNamespace(path, timeout=timedelta(milliseconds=100)).doubt()
        for client in waiting:
            client.close()

    assert doubt is not None
