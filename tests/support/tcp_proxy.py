"""A TCP link on loopback that a test can cut, mend and lead elsewhere.

It runs in threads of the harness, so it goes on while any program is frozen.
"""

import contextlib
import itertools
import socket
import threading
import time
from typing import Self

HOST = "127.0.0.1"
BUFFER = 65536


class TcpProxy:
    """Listens on `port` and passes everything on to another port of this machine.

    With several targets they take turns, and one that refuses is skipped, as by a Service.
    """

    def __init__(self, *targets: int) -> None:
        self.open_to(*targets)
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay_seconds = 0.0
        """How long everything is on its way, to there and back alike."""
        self._passes = threading.Event()
        self._passes.set()
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="tcp-proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._listener)
        self._passes.set()
        self._drop()

    def cut(self) -> None:
        """Let nothing through; connections stay open and silent, as on a lost network."""
        self._passes.clear()

    def mend(self) -> None:
        """Let everything through again; what was open during a cut is closed."""
        self._drop()
        self._passes.set()

    def lead_to(self, *targets: int) -> None:
        """Close every connection and lead new ones elsewhere: an address that moved."""
        self.open_to(*targets)
        self._drop()

    def open_to(self, *targets: int) -> None:
        """Lead new connections elsewhere: endpoints that have become ready, or no longer are."""
        self._targets, self._turns = targets, itertools.count()

    def _reach(self) -> socket.socket | None:
        targets, turn = self._targets, next(self._turns)
        for attempt in range(len(targets)):
            address = HOST, targets[(turn + attempt) % len(targets)]
            with contextlib.suppress(OSError):
                return socket.create_connection(address, timeout=5)
        return None

    def _drop(self) -> None:
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            _close(end)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with self._lock:
            self._ends.add(near)
        self._passes.wait()
        far = self._reach()
        if far is None:
            self._forget(near)
            return
        far.settimeout(None)
        with self._lock:
            is_open = near in self._ends
            if is_open:
                self._ends.add(far)
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not is_open:
            _close(far)
            return
        threading.Thread(target=self._pump, args=(far, near), daemon=True).start()
        self._pump(near, far)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(BUFFER):
                self._passes.wait()
                time.sleep(self.delay_seconds)
                sink.sendall(data)
        except OSError:
            pass
        self._forget(source, sink)

    def _forget(self, *ends: socket.socket) -> None:
        with self._lock:
            self._ends.difference_update(ends)
        for end in ends:
            _close(end)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
