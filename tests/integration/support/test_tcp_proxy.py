"""The link that tests cut, against echoing servers."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.support.processes import free_port
from tests.support.tcp_proxy import HOST, TcpProxy


def _serve(listener: socket.socket, name: bytes) -> None:
    while True:
        try:
            end, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(end, name), daemon=True).start()


def _answer(end: socket.socket, name: bytes) -> None:
    with end, contextlib.suppress(OSError):
        while end.recv(100):
            end.sendall(name)


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], int]]:
    """Start servers that answer everything with their name."""
    listeners: list[socket.socket] = []

    def start(name: bytes) -> int:
        listener = socket.create_server((HOST, 0))
        listeners.append(listener)
        threading.Thread(target=_serve, args=(listener, name), daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection((HOST, proxy.port), timeout=0.3)


def _ask(end: socket.socket) -> bytes:
    end.sendall(b"?")
    return end.recv(100)


def test_it_passes_everything_on(serve: Callable[[bytes], int]) -> None:
    """Both ways."""
    with TcpProxy(serve(b"one")) as proxy, _connect(proxy) as end:
        assert _ask(end) == b"one"


def test_a_cut_link_is_silent_and_a_mended_one_begins_anew(serve: Callable[[bytes], int]) -> None:
    """Old connections and new ones hang; afterwards old ones are closed and new ones work."""
    with TcpProxy(serve(b"one")) as proxy, _connect(proxy) as old:
        assert _ask(old) == b"one"
        proxy.cut()
        with _connect(proxy) as other:
            for end in (old, other):
                with pytest.raises(TimeoutError):
                    _ask(end)
        proxy.mend()
        with contextlib.suppress(OSError):
            assert old.recv(100) == b""
        with _connect(proxy) as new:
            assert _ask(new) == b"one"


def test_a_link_can_be_led_to_another_server(serve: Callable[[bytes], int]) -> None:
    """Old connections are closed: who comes again meets the other one."""
    with TcpProxy(serve(b"one")) as proxy, _connect(proxy) as old:
        assert _ask(old) == b"one"
        proxy.lead_to(serve(b"two"))
        with contextlib.suppress(OSError):
            assert old.recv(100) == b""
        with _connect(proxy) as new:
            assert _ask(new) == b"two"


def test_several_servers_take_turns_and_a_dead_one_is_skipped(
    serve: Callable[[bytes], int],
) -> None:
    """As behind a Service."""
    dead = free_port()
    with TcpProxy(serve(b"one"), dead, serve(b"two")) as proxy:
        answers = []
        for _ in range(3):
            with _connect(proxy) as end:
                answers.append(_ask(end))

    assert answers == [b"one", b"two", b"two"]
