"""Session records for tests, watched as the CRD's defaults say, and hands to bend them."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import TOKEN_LIFE, ClientStore
from gpusession.store.gateways import GatewayRegistry
from gpusession.store.pulse import Pulse
from gpusession.store.sessions import LivenessSpec, Record, SessionStore

UID = "0a1b"
LIFETIME = timedelta(hours=12)
GATEWAY = "gw-a"
TOKEN = hashlib.sha256(b"first").hexdigest()
FAR = 4_102_444_800_000
"""The year 2100."""
OTHER_TOKEN = hashlib.sha256(b"second").hexdigest()


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


async def open_record(client: RedisClient, uid: str = UID, **changed: Any) -> None:
    """Open the record of the tests, in part otherwise; a new one counts from 0."""
    is_new = not await client.call("EXISTS", keys.record(uid))
    fields = {"namespace": "ns", "name": "a", "user": "ann", "node": "n1"}
    rest = {"uid": uid, "lifetime": LIFETIME, "liveness": liveness()}
    await SessionStore(client).open(**(rest | fields | changed))
    if is_new:
        await bend(client, uid, n=0)


async def open_with_token(client: RedisClient, uid: str = UID, **changed: Any) -> None:
    """Open a record that TOKEN opens, at GATEWAY among others, which lives."""
    await open_record(client, uid=uid, **changed)
    await ClientStore(client).mint(uid, TOKEN, TOKEN_LIFE)
    await GatewayRegistry(client).announce(GATEWAY, timedelta(seconds=10))


async def watch(client: RedisClient, *, lost: int = 0) -> None:
    """Look at the server as the controller does, and find that it lost data at that moment.

    All records are there again.
    """
    await Pulse(client).tick()
    await client.call("HSET", keys.TICK, "lost", lost, "rebuilt", lost)


async def read_record(client: RedisClient, uid: str = UID) -> Record:
    """Read a record that must be there."""
    sighting = await SessionStore(client).read(uid)
    assert sighting is not None
    return sighting.record


async def bend(client: RedisClient, uid: str = UID, **fields: int | str) -> None:
    """Write fields of a record by hand."""
    if not fields:
        return
    await client.call("HSET", keys.record(uid), *(part for pair in fields.items() for part in pair))


async def now_ms(client: RedisClient) -> int:
    """Read the server's clock as scripts do."""
    seconds, micros = map(int, await client.call("TIME"))
    return seconds * 1000 + micros // 1000


def moment(milliseconds: int) -> datetime:
    """Read a time of the server's clock."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)


async def expiry(client: RedisClient, token: str = TOKEN, uid: str = UID) -> int:
    """Read when a token expires, as it is stored."""
    return int(await client.call("HGET", keys.tokens(uid), token))


async def score(client: RedisClient, uid: str = UID) -> float | None:
    """Read when a record is to be looked at next."""
    stored: float | None = await client.call("ZSCORE", keys.DEADLINES, uid)
    return stored


async def news(client: RedisClient) -> list[tuple[str, str]]:
    """List kind and uid of all events."""
    entries = await client.call("XRANGE", keys.EVENTS, "-", "+")
    return [(flat[1].decode(), flat[3].decode()) for _, flat in entries]
