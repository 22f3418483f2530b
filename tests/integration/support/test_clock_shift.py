"""A server's clock, moved while it runs."""

import time
from pathlib import Path

import pytest
import redis
from tests.support import assets
from tests.support.clock_shift import ShiftedClock
from tests.support.redis_server import RedisServer

HOUR = 3600


@pytest.mark.parametrize("shift", [HOUR, -HOUR])
def test_a_running_server_follows_the_shift(tmp_path: Path, shift: int) -> None:
    """Both ways, and back."""
    clock = ShiftedClock(tmp_path / "clock")
    server = RedisServer(assets.redis_server(), tmp_path, environment=clock.environment)
    answers = []
    with server, redis.Redis.from_url(server.url) as client:
        for seconds in (0, shift, 0):
            clock.move(seconds)
            now, _ = client.time()
            answers.append(round((now - time.time()) / 60))

    assert answers == [0, shift // 60, 0]
