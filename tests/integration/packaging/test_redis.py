"""Component redis: its command line, run by the real server that the harness has."""

import os
import signal
from pathlib import Path

import pytest
import redis
import yaml
from tests.support import assets
from tests.support.processes import Process, free_port, wait_until
from tests.support.session_api import MANIFESTS

MANIFEST = MANIFESTS / "components" / "redis" / "50-redis.yaml"


@pytest.fixture
def command(tmp_path: Path) -> tuple[list[str], int]:
    """Give the container's command with a folder and a port of our own."""
    objects = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    (server,) = [each for each in objects if each["kind"] == "StatefulSet"]
    shell, option, script = server["spec"]["template"]["spec"]["containers"][0]["command"]
    port = free_port()
    return [shell, option, script.replace("/data", f"{tmp_path}\nport {port}")], port


def test_it_wants_its_password_and_ends_when_asked(
    command: tuple[list[str], int], tmp_path: Path
) -> None:
    """The password comes by standard input, and SIGTERM reaches the server, not a shell."""
    argv, port = command
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "valkey-server").symlink_to(next(iter(assets.redis_servers().values())))
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    server = Process(argv, log=tmp_path / "log", env={"PATH": path, "PASSWORD": "right"})

    with server:
        with redis.Redis(port=port, password="right") as known:
            wait_until(
                lambda: answers(known), timeout=10, what="the server to answer", processes=[server]
            )
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        os.kill(server.pid or 0, signal.SIGTERM)

        assert server.wait(10) == 0


def answers(client: redis.Redis) -> bool:
    """Tell whether the server is there."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
