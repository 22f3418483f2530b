"""By what the controller knows the Redis server again, from one look to the next.

It judges nothing: whether the watch is unbroken is for the rules to say.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime

from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.gateways import LAPSED_AT_ONCE
from gpusession.store.sessions import Proof, moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One look: which server, at what time, and whether ours was the look before."""

    run_id: str
    replication_id: str
    role: str
    now: datetime
    number: int
    was_ours: bool
    """The server still had the last number that this very process wrote."""
    gateways: int
    """How many live."""
    lapsed: tuple[str, ...]
    """Gateways whose lease is over and which are not cleared yet; not more than 100."""
    proof: Proof
    """What a claim must find again on the server."""


class Pulse:
    """The looks of one process."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._writer = secrets.token_hex(8)
        self._number: int | None = None
        self._has_looked = False

    async def tick(self) -> Tick:
        """Look. One that fails breaks the row: the next one does not find ours.

        A server that is another than at the last look, or has forgotten that look, may have
        lost data: that is noted in it, for whoever comes with a token that it does not know.
        """
        last, self._number = self._number, None
        (
            run_id,
            replication_id,
            role,
            clock,
            before,
            by,
            number,
            living,
            lapsed,
        ) = await self._client.run(
            "tick",
            keys=[keys.TICK, keys.GATEWAYS, keys.DEADLINES],
            args=[self._writer, LAPSED_AT_ONCE, int(self._has_looked)],
        )
        self._number, self._has_looked = number, True
        return Tick(
            run_id=run_id.decode(),
            replication_id=replication_id.decode(),
            role=role.decode(),
            now=moment(clock),
            number=number,
            was_ours=by.decode() == self._writer and before == last,
            gateways=living,
            lapsed=tuple(gateway.decode() for gateway in lapsed),
            proof=Proof(number, self._writer),
        )
