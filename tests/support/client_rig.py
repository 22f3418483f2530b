"""The fake gateway in the hands of a test, and the waits of a client under test."""

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

from tests.support.processes import Process, free_port, wait_until
from tests.support.toolchain import REPOSITORY

from gpusession.client import Timing

QUICK = Timing(
    patience=timedelta(seconds=8),
    ack_timeout=timedelta(seconds=1),
    dial_timeout=timedelta(seconds=3),
    close_patience=timedelta(seconds=5),
    first_pause=timedelta(milliseconds=50),
    longest_pause=timedelta(milliseconds=400),
    restart_spread=timedelta(milliseconds=100),
    longest_retry_after=timedelta(seconds=2),
    file_patience=timedelta(seconds=3),
)
"""Waits a tenth as long as a real client: two busy cores still answer within a second."""


async def until(predicate: Callable[[], object], what: str, *, within: float = 10.0) -> None:
    """Let the loop run until the predicate is true."""
    try:
        async with asyncio.timeout(within):
            while not predicate():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {within} s") from None


class FakeGateway:
    """Starts the program, tells it rules, reads what it saw."""

    def __init__(self, workdir: Path, **rules: Any) -> None:
        self._log = workdir / "seen.jsonl"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        module = [sys.executable, "-m", "tests.support.fake_gateway"]
        self.process = Process(
            [*module, f"--port={self.port}", f"--log={self._log}", f"--rules={json.dumps(rules)}"],
            log=workdir / "gateway.log",
            cwd=REPOSITORY,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    def start(self) -> None:
        """Start it, after a kill too, with its first rules."""
        self.process.start()
        wait_until(self._answers, timeout=15, what="the fake gateway", processes=[self.process])

    def reset(self) -> None:
        """Begin anew with the default rules and an empty log; start it where it was killed."""
        if not self.process.running:
            self.process.kill()
            self.start()
        self._post("/control/reset", {})

    def rules(self, **rules: Any) -> None:
        """Change rules from now on."""
        self._post("/control/rules", rules)

    def say(self, **frame: Any) -> None:
        """Send a frame on every open connection."""
        self._post("/control/push", {"frame": frame})

    def hang_up(self, code: int, reason: str = "") -> None:
        """Close every open connection."""
        self._post("/control/push", {"close": code, "reason": reason})

    def seen(self, what: str, **fields: Any) -> list[dict[str, Any]]:
        """Read what clients did, as far as it matches."""
        if not self._log.exists():
            return []
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        wanted = {"what": what, **fields}
        return [line for line in lines if wanted.items() <= line.items()]

    def count(self, what: str, **fields: Any) -> int:
        """Count what clients did."""
        return len(self.seen(what, **fields))

    def _answers(self) -> bool:
        try:
            self._ask("GET", "/healthz")
        except OSError:
            return False
        return True

    def _post(self, path: str, body: Any) -> None:
        self._ask("POST", path, json.dumps(body))

    def _ask(self, method: str, path: str, body: str | None = None) -> None:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            connection.getresponse().read()
