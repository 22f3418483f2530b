"""Leases of gateways in real servers."""

from datetime import timedelta

from gpusession.store.client import RedisClient
from gpusession.store.gateways import GatewayRegistry


async def test_gateway_comes_and_goes(client: RedisClient) -> None:
    """A lease is new, then renewed, and given up."""
    gateways = GatewayRegistry(client)

    first = await gateways.announce("a", timedelta(seconds=10))
    second = await gateways.announce("a", timedelta(seconds=10))
    await gateways.leave("a")

    assert (first, second, await gateways.lapsed()) == (False, True, [])
