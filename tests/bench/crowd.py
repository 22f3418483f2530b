"""Very many Sessions in Redis that are alive: each beats every 30 s, as clients make it beat.

Their records and tokens are made by the product's own scripts and moved by them. No Session
object stands behind those of `fill`: they are there for the sweep to walk over.
"""

import asyncio
import hashlib
import uuid
from collections.abc import Iterable
from datetime import timedelta

from tests.bench.figures import NotMeasuredError
from tests.support.progress import say
from tests.support.records import liveness

from gpusession.errors import StoreUnavailable
from gpusession.store.client import RedisClient
from gpusession.store.clients import TOKEN_LIFE, Answer, ClientStore
from gpusession.store.gateways import GatewayRegistry
from gpusession.store.sessions import PAGE, SessionStore

GATEWAY = "bench"
LEASE = timedelta(seconds=10)
BEAT_SECONDS = 30.0
"""The default heartbeat.periodSeconds."""

LIFETIME = timedelta(hours=12)
DIGEST = hashlib.sha256(b"the crowd's").hexdigest()
SIDE_BY_SIDE = 64
TELL_EVERY = 20_000


class Crowd:
    """Everybody who beats; `run` beats for all of them until it is cancelled."""

    def __init__(self, redis: RedisClient) -> None:
        self._sessions = SessionStore(redis)
        self._clients = ClientStore(redis)
        self._gateways = GatewayRegistry(redis)
        self._members: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._members)

    async def fill(self, total: int) -> None:
        """Add records until so many Sessions beat."""
        for start in range(len(self), total, SIDE_BY_SIDE):
            count = min(SIDE_BY_SIDE, total - start)
            await asyncio.gather(*(self._add() for _ in range(count)))
            if start // TELL_EVERY != (start + count) // TELL_EVERY:
                say(f"{start + count:,} records")

    async def join(self, uid: str) -> None:
        """Have a Session that has a record beat as well."""
        await self._clients.mint(uid, DIGEST, TOKEN_LIFE)
        self._members.append((uid, DIGEST))

    async def use(self, uids: Iterable[str]) -> None:
        """Have clients use these Sessions: it calls off an end for being idle."""
        for uid in uids:
            answer = await self._clients.activity(uid, DIGEST, GATEWAY, timedelta())
            if answer not in (Answer.OK, Answer.RETURNED):
                raise NotMeasuredError(f"a Session could not be used: {answer}")

    async def run(self) -> None:
        """Beat in turn, evenly over the period, and hold a gateway's lease all the while."""
        loop, owed, cursor = asyncio.get_running_loop(), 0.0, 0
        last = renewed_at = loop.time() - LEASE.total_seconds()
        while True:
            now = loop.time()
            owed, last = min(owed + len(self) * (now - last) / BEAT_SECONDS, len(self)), now
            cursor %= max(1, len(self))
            batch = self._members[cursor : cursor + min(int(owed), PAGE)]
            try:
                if now - renewed_at > LEASE.total_seconds() / 4:
                    await self._gateways.announce(GATEWAY, LEASE)
                    renewed_at = now
                if batch:
                    await self._clients.beats(batch, GATEWAY)
            except StoreUnavailable as error:
                say(f"the crowd was not heard: {error}")
                continue
            cursor, owed = cursor + len(batch), owed - len(batch)
            if owed < PAGE:
                await asyncio.sleep(0.05)

    async def _add(self) -> None:
        uid = str(uuid.uuid4())
        await self._sessions.open(
            uid=uid,
            namespace="crowd",
            name=uid,
            user=None,
            node="nowhere",
            lifetime=LIFETIME,
            liveness=liveness(initial_delay=timedelta()),
        )
        await self.join(uid)
