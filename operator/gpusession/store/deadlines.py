"""When to look at which Session: a queue in Redis that no crash empties.

What is due is leased, not removed: whoever asks again 30 s later gets it again, until the
record is gone or its deadline has moved on. Beats do not touch it; a look after a beat puts
the next look off in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.sessions import milliseconds

LEASE = timedelta(seconds=30)
"""For whoever acts on what is due: longer than any single step of it."""

PAGE = 100
"""Records looked at per script call: at 20 us each, among 100,000, 2 ms of the server's thread."""

MOST_PAGES = 90
"""9,000 looks per call: 100,000 Sessions that beat need some 2,500 looks per second."""

POSTPONED = 500
"""Scores per ZADD: about 1 ms of the server's one thread."""

EPOCH = datetime.fromtimestamp(0, UTC)

RECALLED_AT_ONCE = 1000
"""Records called back per script call, about 1 ms."""

LONGEST_LEASE = timedelta(seconds=60)
"""Of a gateway: six times what is usual; a living one renews it long before."""

CLAIM = "claim"
"""`Due.why` of a record whose end has begun: pending and out of grace, or on from there."""


class DueKind(StrEnum):
    """What is to be done about a record."""

    DUE = "due"
    """A deadline has passed, or an end that has begun must go on."""
    LATE = "late"
    """Nothing has passed, but its beat is late or its last client is gone."""
    MISSING = "missing"
    """No record, or none that is whole: it proves nothing and is to be made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """One record that somebody must look at."""

    uid: str
    kind: DueKind
    why: str
    """A Reason of the ends, or CLAIM; empty unless the kind is DUE."""
    node: str
    gateway: str
    """Where the last beat came from."""


class DeadlineStore:
    """The deadlines, by Session uid."""

    def __init__(self, client: RedisClient, *, lease: timedelta = LEASE) -> None:
        self._client = client
        self._lease = milliseconds(lease)

    async def due(self, limit: int = 500) -> list[Due]:
        """Lease what is due, about `limit` of it at most; LATE is told once per lease.

        An answer shorter than `limit` says that nothing more is due, or that very many
        records were looked at: in both cases the next sweep goes on.
        """
        found: list[Due] = []
        for _ in range(MOST_PAGES):
            page = min(PAGE, limit - len(found))
            looked, lines = await self._client.run(
                "due", keys=[keys.DEADLINES], args=(page, self._lease, keys.record(""))
            )
            found += [_due(*line) for line in lines]
            if looked < page or len(found) >= limit:
                break
        return found

    async def recall(self) -> None:
        """Have everything looked at now; leases of gateways that reach too far ahead are cut.

        For a clock that was moved back, or another server's: times that lie far ahead by it
        may be over, and nobody would look before they are reached.
        """
        longest = milliseconds(LONGEST_LEASE)
        waited = RECALLED_AT_ONCE
        while waited == RECALLED_AT_ONCE:
            waited = await self._client.run(
                "recall", keys=[keys.DEADLINES, keys.GATEWAYS], args=(RECALLED_AT_ONCE, longest)
            )

    async def postpone(self, until: Mapping[str, datetime]) -> None:
        """Look again at those times of the server's clock; only at what is looked at anyway."""
        rows = [(milliseconds(at - EPOCH), uid) for uid, at in until.items()]
        for start in range(0, len(rows), POSTPONED):
            page = (part for row in rows[start : start + POSTPONED] for part in row)
            await self._client.call("ZADD", keys.DEADLINES, "XX", *page)


def _due(*line: bytes) -> Due:
    uid, kind, why, node, gateway = (part.decode() for part in line)
    return Due(uid=uid, kind=DueKind(kind), why=why, node=node, gateway=gateway)
