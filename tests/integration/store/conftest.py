"""One server per test run and product for most, one of its own for who stops or freezes it."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support import assets
from tests.support.redis_server import RedisServer

from gpusession.store.client import RedisClient

PRODUCTS = sorted(assets.redis_servers())


@pytest.fixture(params=PRODUCTS)
def server(request: pytest.FixtureRequest, redis_servers: dict[str, RedisServer]) -> RedisServer:
    """Give a running server that other tests share."""
    return redis_servers[request.param]


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[RedisClient]:
    """Give a client of the shared server, emptied."""
    async with RedisClient(server.url, timeout=timedelta(seconds=5)) as connected:
        await connected.call("FLUSHALL")
        yield connected


@pytest.fixture(params=PRODUCTS)
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """Give a server that the test may stop, freeze and set up."""
    with RedisServer(assets.redis_servers()[request.param], tmp_path) as running:
        yield running


@pytest.fixture
async def own_client(own_server: RedisServer) -> AsyncIterator[RedisClient]:
    """Give a client of that server with one connection and little patience."""
    limit = timedelta(seconds=0.2)
    async with RedisClient(own_server.url, timeout=limit, connections=1) as connected:
        yield connected
        own_server.resume()
