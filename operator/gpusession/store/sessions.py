"""Our record of each Session in the control Redis: liveness and who it belongs to.

The record can be lost at any time: the Session object rebuilds it, and a missing record is
never an expired one. Times are the server's own, so no two clocks are compared.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from gpusession.store import keys
from gpusession.store.client import RedisClient

KEEP = timedelta(hours=24)
"""A record outlives its cap this long: a day of outage, and then nothing stays behind."""

SCAN_COUNT = 1000
"""Names looked at per SCAN step: about 1 ms of the server's one thread."""


class RecordState(StrEnum):
    """How far the end of a Session has come, as the gateway must know it."""

    ACTIVE = "active"
    PENDING = "pending"
    RELEASING = "releasing"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One Session as Redis knows it; the fields are called as in the hash."""

    ns: str
    name: str
    user: str | None
    node: str
    hb: datetime
    """Last heartbeat, or the opening."""
    act: datetime
    """Last activity, or the opening; a heartbeat is no activity."""
    cap: datetime
    """The end of the longest lifetime."""
    state: RecordState


class SessionStore:
    """The records, by Session uid. Every method may be repeated."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def open(
        self,
        *,
        uid: str,
        namespace: str,
        name: str,
        user: str | None,
        node: str,
        lifetime: timedelta,
    ) -> None:
        """Make sure that the record is there and whole.

        What an existing record says stands, its beats above all: an open that comes late
        or twice takes nothing back. `lifetime` counts from now where `cap` is missing.
        """
        limits = (_milliseconds(lifetime), _milliseconds(KEEP))
        args = (namespace, name, user or "", node, *limits)
        await self._client.run("open", keys=[keys.record(uid)], args=args)

    async def mark(self, uid: str, state: RecordState) -> bool:
        """Write how far the end has come; False if there is no record, and none is made."""
        return bool(await self._client.run("mark", keys=[keys.record(uid)], args=[state]))

    async def forget(self, uid: str) -> None:
        """Remove the record: the last step of an end."""
        await self._client.call("UNLINK", keys.record(uid))

    async def uids(self) -> frozenset[str]:
        """Give the uids of all records; one that comes or goes meanwhile may be missed."""
        found: set[str] = set()
        cursor = b"0"
        while True:
            pattern = keys.record("*")
            cursor, page = await self._client.call(
                "SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT
            )
            found.update(key.decode().removeprefix(keys.record("")) for key in page)
            if cursor == b"0":
                return frozenset(found)

    async def read(self, uid: str) -> Record | None:
        """Give the record; None where it is missing or not whole, which proves nothing."""
        fields: dict[bytes, bytes] = await self._client.call("HGETALL", keys.record(uid))
        try:
            return _record({key.decode(): value.decode() for key, value in fields.items()})
        except (KeyError, ValueError, OverflowError):
            return None


def _record(fields: dict[str, str]) -> Record:
    return Record(
        ns=fields["ns"],
        name=fields["name"],
        user=fields["user"] or None,
        node=fields["node"],
        hb=_moment(fields["hb"]),
        act=_moment(fields["act"]),
        cap=_moment(fields["cap"]),
        state=RecordState(fields["state"]),
    )


def _milliseconds(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)


def _moment(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(milliseconds))
