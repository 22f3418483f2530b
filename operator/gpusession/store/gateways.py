"""Which gateways live: each holds a lease, and what a dead one had counted is taken back.

A gateway announces itself and leaves; the controller looks for those that fell silent.
"""

from datetime import timedelta

from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.sessions import KEEP, PAGE, milliseconds

LAPSED_AT_ONCE = 100
"""Ids per look; whoever is left comes with the next one."""


class GatewayRegistry:
    """The gateways' leases, by gateway id. Every method may be repeated."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def announce(self, gateway: str, ttl: timedelta) -> bool:
        """Take or renew the lease; False if none was running any more.

        Then what this gateway had counted may be taken back already: it counts anew.
        """
        args = (gateway, milliseconds(ttl), milliseconds(KEEP))
        names = _names(gateway)
        return bool(await self._client.run("announce", keys=names, args=args))

    async def leave(self, gateway: str) -> None:
        """Give the lease up; connections still counted are taken back as a dead gateway's."""
        await self._client.run("leave", keys=_names(gateway), args=[gateway])

    async def populations(self) -> dict[str, int]:
        """Give how many Sessions are connected at each living gateway."""
        living = await self._client.call("ZRANGE", keys.GATEWAYS, 0, -1)
        names = [gateway.decode() for gateway in living]
        return {name: await self._client.call("SCARD", keys.gateway(name)) for name in names}

    async def lapsed(self) -> list[str]:
        """Give the ids of gateways whose lease is over and which `lapse` has not cleared."""
        found = await self._client.run("lapsed", keys=[keys.GATEWAYS], args=[LAPSED_AT_ONCE])
        return [gateway.decode() for gateway in found]

    async def lapse(self, gateway: str, limit: int = PAGE) -> int:
        """Take back one page of a dead gateway's connections; gives how many uids are left.

        Its Sessions count as just heard. A gateway that lives again is left alone.
        """
        args = (gateway, min(limit, PAGE), keys.record(""))
        left: int = await self._client.run("lapse", keys=_names(gateway), args=args)
        return left


def _names(gateway: str) -> list[str]:
    return [keys.GATEWAYS, keys.gateway(gateway), keys.ANNOUNCED]
