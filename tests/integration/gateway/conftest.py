"""One gateway for the tests of a module; who hurts it or its Redis starts one of its own."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.support import assets
from tests.support.gateway_rig import Desk, GatewayProcess, StartGateway, desk
from tests.support.redis_server import RedisServer

PRODUCT = min(assets.redis_servers())


def nowhere(folder: Path) -> Path:
    """Write a kubeconfig that leads to an apiserver that is down."""
    config = {
        "current-context": "nowhere",
        "contexts": [{"name": "nowhere", "context": {"cluster": "nowhere", "user": "gw"}}],
        "clusters": [{"name": "nowhere", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "gw", "user": {"token": "gw"}}],
    }
    file = folder / "kubeconfig"
    file.write_text(json.dumps(config))
    return file


@pytest.fixture(scope="module")
def module_settings() -> dict[str, object]:
    """Give what the module's gateway is started with; a module may say otherwise."""
    return {}


@pytest.fixture(scope="module")
def shared(
    redis_servers: dict[str, RedisServer],
    tmp_path_factory: pytest.TempPathFactory,
    module_settings: dict[str, object],
) -> Iterator[tuple[str, GatewayProcess]]:
    """Give a Redis address and a gateway that is on it."""
    folder, url = tmp_path_factory.mktemp("gateway"), redis_servers[PRODUCT].url
    given: dict[str, Any] = {"kubeconfig": nowhere(folder)} | module_settings
    with GatewayProcess(folder, redis_url=url, **given) as gateway:
        yield url, gateway


@pytest.fixture
async def front(shared: tuple[str, GatewayProcess]) -> AsyncIterator[Desk]:
    """Give a desk in front of the module's gateway."""
    async with desk(*shared) as front:
        yield front


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Give a server that the test may stop, freeze and empty."""
    with RedisServer(assets.redis_servers()[PRODUCT], tmp_path / "redis") as server:
        yield server
        server.resume()


@pytest.fixture
async def start_gateway(tmp_path: Path) -> AsyncIterator[StartGateway]:
    """Give a way to start gateways of the test's own; they end with the test."""
    numbers = count()
    with ExitStack() as gateways:
        async with AsyncExitStack() as desks:

            async def start(redis: RedisServer, **settings: Any) -> Desk:
                folder = tmp_path / f"gateway-{next(numbers)}"
                folder.mkdir()
                given: dict[str, Any] = {"kubeconfig": nowhere(folder)} | settings
                process = GatewayProcess(folder, redis_url=redis.url, **given)
                gateways.enter_context(process)
                return await desks.enter_async_context(desk(redis.url, process))

            yield start
