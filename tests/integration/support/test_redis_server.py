"""Redis and Valkey as the harness runs them."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tests.support import assets
from tests.support.redis_server import RedisServer

PRODUCTS = sorted(assets.redis_servers())


@pytest.fixture(params=PRODUCTS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """Give a server that the test may stop and freeze."""
    with RedisServer(assets.redis_servers()[request.param], tmp_path) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[Redis]:
    """Give an impatient client of the server."""
    with Redis.from_url(server.url, socket_timeout=0.3, retry=None) as connected:
        yield connected


@pytest.mark.parametrize("product", PRODUCTS)
def test_shared_servers_answer(product: str, redis_servers: dict[str, RedisServer]) -> None:
    """Every product found on this machine runs for the whole session."""
    with Redis.from_url(redis_servers[product].url) as client:
        assert client.ping()


def test_restart_keeps_the_port_and_loses_the_data(server: RedisServer, client: Redis) -> None:
    """Clients find a restarted server where it was, empty."""
    client.set("session", "alive")
    before = server.url

    server.stop()
    server.start()

    assert server.url == before
    assert client.get("session") is None


def test_paused_server_is_silent_and_resumes_with_its_data(
    server: RedisServer, client: Redis
) -> None:
    """A freeze looks like a partition, not like a loss."""
    client.set("session", "alive")

    server.pause()

    with pytest.raises(RedisTimeoutError):
        client.get("session")
    server.resume()
    assert client.get("session") == b"alive"


def test_killed_server_refuses_connections(server: RedisServer, client: Redis) -> None:
    """After a crash nobody listens on the port."""
    server.kill()

    with pytest.raises(RedisConnectionError):
        client.ping()


def test_two_servers_run_side_by_side(server: RedisServer, tmp_path: Path) -> None:
    """Each server has a port of its own."""
    with RedisServer(assets.redis_server(), tmp_path / "second") as second:
        assert second.port != server.port


def test_only_loopback_is_served(server: RedisServer) -> None:
    """Another address of this machine finds nobody on the port."""
    with socket.socket() as other:
        other.settimeout(1)

        assert other.connect_ex(("127.0.0.2", server.port)) != 0
