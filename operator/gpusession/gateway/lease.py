"""This gateway's lease in Redis: under which id its connections count, and whether they do.

An id is never taken up again once its lease may have run out: by then the controller may have
taken back what was counted under it. So the gateway goes on under a new one and counts its
open connections anew. That is so after

1. a cut from Redis or a pause of this process that was longer than the lease,
2. an answer that no lease was running: Redis was emptied, or its clock was moved.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from datetime import timedelta

import structlog

from gpusession.errors import StoreUnavailable
from gpusession.store.gateways import GatewayRegistry

RENEWALS = 4
"""In the time of one lease: three may fail."""

LONGEST_PAUSE = 1.0
"""Seconds between two renewals: whoever was heard here is silent only once this gateway was
seen to live after its deadline, so that an end by silence comes that much later."""

RETRY_SECONDS = 0.5
"""After a failed one: a Redis that is back is found before clients give up."""

log = structlog.get_logger(__name__)


class GatewayLease:
    """Keeps the lease; says when it is lost, and when there is a new id."""

    def __init__(self, registry: GatewayRegistry, *, name: str, ttl: timedelta) -> None:
        self._registry = registry
        self._name = name
        self._ttl = ttl
        self._announced = False
        self._renewed_at: float | None = None
        self._told_lost = False
        self._lost: Callable[[], None] = _nothing
        self._renewed: Callable[[], None] = _nothing
        self.id = self._new_id()

    def listen(self, *, lost: Callable[[], None], renewed: Callable[[], None]) -> None:
        """Have `lost` called when the lease has run out, `renewed` after each gap in renewals."""
        self._lost, self._renewed = lost, renewed

    @property
    def held(self) -> bool:
        """Whether the lease runs, by our own clock and to be on the safe side."""
        return self._renewed_at is not None and not self._has_run_out()

    def require(self) -> None:
        """Raise StoreUnavailable while nothing that is counted here would count."""
        if not self.held:
            raise StoreUnavailable("this gateway is cut off from Redis")

    async def run(self) -> None:
        """Renew for ever."""
        failed = True
        while True:
            if await self._renew():
                if failed:
                    self._renewed()
                failed, pause = False, min(self._ttl.total_seconds() / RENEWALS, LONGEST_PAUSE)
            else:
                failed, pause = True, RETRY_SECONDS
            await asyncio.sleep(pause)

    async def leave(self) -> None:
        """Give it up, if Redis can be told; else it runs out by itself."""
        self._renewed_at = None
        await self._leave(self.id)

    async def _renew(self) -> bool:
        started = time.monotonic()
        previous = self.id
        if self._announced and self._has_run_out():
            self._begin_anew("this process was paused, or cut off from Redis")
        try:
            if not await self._registry.announce(self.id, self._ttl) and self._announced:
                self._begin_anew("Redis knew of no lease")
                await self._registry.announce(self.id, self._ttl)
        except StoreUnavailable as error:
            self._note_failure(error)
            return False
        self._announced, self._told_lost = True, False
        self._renewed_at = started
        if self.id != previous:
            await self._leave(previous)
            self._renewed()
        return True

    def _note_failure(self, error: StoreUnavailable) -> None:
        log.warning("lease not renewed", gateway=self.id, error=str(error))
        if self._has_run_out() and not self._told_lost:
            self._told_lost = True
            self._lost()

    def _begin_anew(self, why: str) -> None:
        previous, self.id = self.id, self._new_id()
        self._announced = False
        log.warning("gateway goes on under a new id", gateway=self.id, previous=previous, why=why)

    def _has_run_out(self) -> bool:
        since = self._renewed_at
        return since is not None and time.monotonic() - since > self._ttl.total_seconds()

    async def _leave(self, gateway: str) -> None:
        try:
            await self._registry.leave(gateway)
        except StoreUnavailable as error:
            log.warning("lease not given up", gateway=gateway, error=str(error))

    def _new_id(self) -> str:
        return f"{self._name}-{secrets.token_hex(4)}"


def _nothing() -> None:
    """Stand for a listener that is not there yet."""
