"""Counts the Sessions now and then: how many could fall silent, and whose lifetime is over.

Lifetimes are seen here too, so that they hold without Redis. It also remembers who was told
of a pause, so that each of them hears of its end.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import islice

from gpusession.api.session import ConditionType, Phase, Session
from gpusession.controller.brakes import CLUSTER, Brakes, Scope
from gpusession.controller.queue import Priority
from gpusession.controller.sessions import SessionCache
from gpusession.errors import StoreUnavailable
from gpusession.rules.brake import ScopeKind
from gpusession.rules.conditions import holds
from gpusession.rules.evidence import lifetime_end
from gpusession.rules.expiry import NONE, heartbeat_period
from gpusession.store.gateways import GatewayRegistry

CHUNK = 500
"""Sessions counted without a pause: 2 ms in which nothing else runs."""

TOLD_AT_ONCE = 12
"""Per sweep: about 50 status writes per second while most of a cluster is silent."""


class Census:
    """One walk over all Sessions per period."""

    def __init__(
        self,
        *,
        sessions: SessionCache,
        brakes: Brakes,
        gateways: GatewayRegistry,
        suspect: Callable[[str, Priority], None],
        clock: Callable[[], datetime],
        period: timedelta,
    ) -> None:
        self._sessions = sessions
        self._brakes = brakes
        self._gateways = gateways
        self._suspect = suspect
        self._clock = clock
        self._period = period
        self._due_at = float("-inf")
        self._told: set[str] = set()

    async def take_if_due(self) -> None:
        """Count, if the last count is old enough."""
        now = asyncio.get_running_loop().time()
        if now < self._due_at:
            return
        self._due_at = now + self._period.total_seconds()
        totals = await self._walk()
        try:
            for gateway, population in (await self._gateways.populations()).items():
                totals[ScopeKind.GATEWAY, gateway] = population
        except StoreUnavailable:
            return  # the sweep says so; lifetimes were seen all the same
        self._brakes.count(totals)

    def to_tell(self) -> list[str]:
        """Give some who are paused and were not told so, and some who were and are no more."""
        paused, told = self._brakes.is_paused, self._told
        fresh = (uid for uid in self._brakes.overdue() if uid not in told and paused(uid))
        freed = (uid for uid in told if not paused(uid))
        news = [*islice(fresh, TOLD_AT_ONCE), *islice(freed, TOLD_AT_ONCE)]
        self._told.symmetric_difference_update(news)
        return news

    async def _walk(self) -> Counter[Scope]:
        now, totals = self._clock(), Counter[Scope]()
        for index, session in enumerate(self._sessions):
            if index % CHUNK == CHUNK - 1:
                await asyncio.sleep(0)
            if session.status.phase is not Phase.ACTIVE:
                continue
            if heartbeat_period(session.spec) > NONE:
                totals[CLUSTER] += 1
                totals[ScopeKind.NODE, session.status.node_name or ""] += 1
            if holds(session.status, ConditionType.EXPIRY_PAUSED):
                self._told.add(session.metadata.uid)
            if _is_over(session, now):
                self._suspect(session.metadata.uid, Priority.IDLE)
        return totals


def _is_over(session: Session, now: datetime) -> bool:
    ends = lifetime_end(session.status, session.spec)
    return ends is not None and now >= ends
