"""Knowing a real server again."""

from gpusession.store.client import RedisClient
from gpusession.store.pulse import Pulse


async def test_second_look_finds_the_first(client: RedisClient) -> None:
    """Two looks in a row at one server are one unbroken watch."""
    pulse = Pulse(client)

    first, second = await pulse.tick(), await pulse.tick()

    assert (first.was_ours, second.was_ours) == (False, True)
    assert (first.run_id, first.role) == (second.run_id, "master")
