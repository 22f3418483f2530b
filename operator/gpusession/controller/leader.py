"""Holds the Lease that makes this process the one active controller, and counts the reigns.

As client-go's leader election, with one thing more: every reign has an epoch that only ever
grows. It goes into each status and each order to an agent, and both refuse a lower one.
That, not the Lease, is what keeps a deposed leader from doing harm: a Lease only says who
may begin.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from gpusession.api.cluster import Lease, LeaseSpec
from gpusession.errors import ApiUnavailable, Deposed, Refused, Stale
from gpusession.kube.leases import LeaseClient
from gpusession.metrics import LEADER

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Periods:
    """Times of the election, filled from the settings."""

    lease: timedelta
    """Others wait this long after the last renewal that they saw."""

    renew: timedelta
    """The leader gives up this long after its own last renewal; shorter than `lease`."""

    retry: timedelta
    """Between two tries or renewals."""


class Leader:
    """One candidate. `acquire`, then `keep` beside all work, then `resign`."""

    def __init__(
        self,
        leases: LeaseClient,
        *,
        identity: str,
        periods: Periods,
        clock: Callable[[], datetime],
    ) -> None:
        self._leases = leases
        self._identity = identity
        self._periods = periods
        self._clock = clock
        self._held: Lease | None = None
        self._renewed_at = float("-inf")
        self._seen: tuple[str, float] = ("", 0.0)
        self._turn = asyncio.Lock()

    @property
    def epoch(self) -> int:
        """The number of this reign; the first one is 1."""
        return 0 if self._held is None else self._held.spec.lease_transitions + 1

    def check(self) -> None:
        """Raise Deposed unless the Lease is ours by our own clock; call it before each effect."""
        age = asyncio.get_running_loop().time() - self._renewed_at
        if self._held is None or age > self._periods.renew.total_seconds():
            raise Deposed(f"the Lease was last renewed {age:.1f} s ago")

    async def acquire(self) -> None:
        """Wait until the Lease is ours, however long another one reigns."""
        while not await self._try(self._take):
            await asyncio.sleep(self._periods.retry.total_seconds())
        LEADER.set(1)
        log.info("leading", identity=self._identity, epoch=self.epoch)

    async def keep(self) -> None:
        """Renew until the Lease is lost; then raises Deposed, and the process must end."""
        while True:
            await asyncio.sleep(self._periods.retry.total_seconds())
            self.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._periods.renew.total_seconds()):
                    await self._try(self._write)
            self.check()

    async def raise_epoch(self, at_least: int) -> None:
        """Begin a new reign of at least this number.

        For a Lease that was deleted and made anew: its count starts over, and everybody
        would refuse us as a leader of the past. Raises Deposed where we are one.
        """
        if at_least <= self.epoch:
            return
        if not await self._try(lambda: self._write(transitions=at_least - 1)):
            raise Deposed("the Lease could not be renewed with a higher epoch")
        log.warning("epoch raised", epoch=self.epoch)

    async def resign(self) -> None:
        """Give the Lease back so that the next one need not wait; best effort."""
        if self._held is not None:
            await self._try(lambda: self._write(holder=""))
            self._held = None
        LEADER.set(0)

    async def _try(self, step: Callable[[], Awaitable[bool]]) -> bool:
        async with self._turn:
            try:
                return await step()
            except (ApiUnavailable, Stale, Refused) as error:
                log.warning("lease not written", error=str(error))
                return False

    async def _take(self) -> bool:
        lease = await self._leases.read()
        if lease is None:
            spec = self._spec(self._identity, transitions=0, acquired=self._now())
            self._note(await self._leases.create(spec))
            return True
        if not self._is_free(lease):
            return False
        # The same identity is an earlier life of this very Pod: its reign is over as well.
        self._held = lease
        return await self._write(transitions=lease.spec.lease_transitions + 1)

    def _is_free(self, lease: Lease) -> bool:
        now, version = asyncio.get_running_loop().time(), lease.metadata.resource_version or ""
        if self._seen[0] != version:
            self._seen = (version, now)
        if lease.spec.holder_identity in {"", self._identity}:
            return True
        # By our own clock since we first saw this renewal: no two clocks are compared.
        return now - self._seen[1] > self._periods.lease.total_seconds()

    async def _write(self, *, holder: str | None = None, transitions: int | None = None) -> bool:
        seen = self._held
        if seen is None:
            return False
        before = seen.spec
        spec = self._spec(
            self._identity if holder is None else holder,
            transitions=before.lease_transitions if transitions is None else transitions,
            acquired=before.acquire_time if transitions is None else self._now(),
        )
        try:
            self._note(await self._leases.replace(seen, spec))
        except Stale:
            fresh = await self._leases.read()
            if fresh is None or fresh.spec.holder_identity != self._identity:
                self._held = None
                raise
            self._held = fresh  # our own write whose answer was lost: the next one fits
            return False
        return True

    def _note(self, lease: Lease) -> None:
        self._held = lease
        self._renewed_at = asyncio.get_running_loop().time()

    def _spec(self, holder: str, *, transitions: int, acquired: str | None) -> LeaseSpec:
        return LeaseSpec(
            holder_identity=holder,
            lease_duration_seconds=max(1, round(self._periods.lease.total_seconds())),
            acquire_time=acquired,
            renew_time=self._now(),
            lease_transitions=transitions,
        )

    def _now(self) -> str:
        return self._clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
