"""A Redis in the nodes' network: what an installation is given there, and nobody else reaches."""

from pathlib import Path

from tests.cluster.network import address
from tests.support import assets
from tests.support.processes import Process, wait_until

HOST, PORT = address(1), 6379

START_SECONDS = 30.0
"""It takes a tenth of one."""


def start(folder: Path, network: Path) -> Process:
    """Start it in the first node's network, where Pods of both nodes reach it; it outlives us."""
    folder.mkdir()
    server = [assets.redis_server(), "--bind", HOST, "--port", str(PORT)]
    quiet = ["--protected-mode", "no", "--save", "", "--dir", folder]
    process = Process(
        ["nsenter", f"--net={network}", *server, *quiet], log=folder / "redis.log", outlives=True
    )
    process.name = "redis"
    process.start()
    wait_until(
        lambda: process.log_matches("Ready to accept connections"),
        timeout=START_SECONDS,
        what="Redis",
        processes=[process],
    )
    return process
