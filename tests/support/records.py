"""Session records for tests, watched as the CRD's defaults say, and hands to bend them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.sessions import LivenessSpec, Record, SessionStore

UID = "0a1b"
LIFETIME = timedelta(hours=12)


def liveness(**changed: Any) -> LivenessSpec:
    """Give what the CRD's defaults ask for, in part otherwise."""
    defaults = {
        "heartbeat_period": timedelta(seconds=30),
        "heartbeat_threshold": timedelta(seconds=90),
        "initial_delay": timedelta(seconds=60),
        "idle_timeout": timedelta(minutes=30),
        "signals": ("Client", "GPU"),
        "disconnect_grace": timedelta(seconds=90),
    }
    return LivenessSpec(**(defaults | changed))


async def open_record(client: RedisClient, **changed: Any) -> None:
    """Open the record of the tests, in part otherwise."""
    fields = {"uid": UID, "namespace": "ns", "name": "a", "user": "ann", "node": "n1"}
    rest = {"lifetime": LIFETIME, "liveness": liveness()}
    await SessionStore(client).open(**(rest | fields | changed))


async def read_record(client: RedisClient, uid: str = UID) -> Record:
    """Read a record that must be there."""
    sighting = await SessionStore(client).read(uid)
    assert sighting is not None
    return sighting.record


async def bend(client: RedisClient, uid: str = UID, **fields: int | str) -> None:
    """Write fields of a record by hand."""
    await client.call("HSET", keys.record(uid), *(part for pair in fields.items() for part in pair))


async def now_ms(client: RedisClient) -> int:
    """Read the server's clock as scripts do."""
    seconds, micros = map(int, await client.call("TIME"))
    return seconds * 1000 + micros // 1000


def moment(milliseconds: int) -> datetime:
    """Read a time of the server's clock."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)


async def news(client: RedisClient) -> list[tuple[str, str]]:
    """List kind and uid of all events."""
    entries = await client.call("XRANGE", keys.EVENTS, "-", "+")
    return [(flat[1].decode(), flat[3].decode()) for _, flat in entries]
