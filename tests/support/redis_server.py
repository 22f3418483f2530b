"""A Redis or Valkey server of its own for a test or a demo, on loopback, without persistence."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.support.processes import Process, ProcessFailedError, free_port, wait_until

HOST = "127.0.0.1"
PORT_ATTEMPTS = 5
"""A free port can be taken between the look and the bind."""


class RedisServer:
    """One server: started by the with block, stopped, started again, frozen at will.

    The port stays the same over restarts; the data does not, unless `dump` kept a copy.
    """

    def __init__(
        self, binary: Path, workdir: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self.port = 0
        self._environment = dict(os.environ) | dict(environment or {})
        self._binary = binary
        self._workdir = workdir
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address for redis clients, database 0."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def dump(self) -> Path:
        """Where SAVE puts a copy of the data, which every start finds until it is removed."""
        return self._workdir / "dump.rdb"

    @property
    def running(self) -> bool:
        """Whether the server process lives, paused or not."""
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start the server, on the port it had if it ran before, and wait until it answers."""
        if self._process is not None:
            raise ProcessFailedError(f"{self._binary.name} was started already")
        attempts = 1 if self.port else PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            port = self.port or free_port()
            process = self._launch(port)
            try:
                self._wait_ready(process, port)
            except ProcessFailedError:
                process.stop()
                if attempt == attempts:
                    raise
            else:
                self.port, self._process = port, process
                return

    def _launch(self, port: int) -> Process:
        argv = [self._binary, "--port", str(port), "--bind", HOST, "--dir", self._workdir]
        argv += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        log = self._workdir / f"{self._binary.name}.log"
        process = Process(argv, log=log, env=self._environment)
        process.start()
        return process

    def _wait_ready(self, process: Process, port: int) -> None:
        what = f"{self._binary.name} on port {port}"
        wait_until(lambda: _is_served_by(process, port), timeout=20, what=what, processes=[process])

    def stop(self) -> None:
        """End the server; harmless when it is down already."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """End the server without a farewell, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def pause(self) -> None:
        """Freeze the server: connections stay open and nothing is answered."""
        if self._process is not None:
            self._process.pause()

    def resume(self) -> None:
        """Let a frozen server go on, its data intact."""
        if self._process is not None:
            self._process.resume()


def _is_served_by(process: Process, port: int) -> bool:
    """Whether this very process answers: another server may have taken the port first."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"INFO server\r\n")
            return f"process_id:{process.pid}\r\n".encode() in connection.recv(65536)
    except OSError:
        return False
