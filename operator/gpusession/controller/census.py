"""Counts the Sessions now and then: how many could fall silent, and whose lifetime is over.

Lifetimes are seen here too, so that they hold without Redis. It also remembers who was told
of a pause, so that each of them hears of its end.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

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
        totals = self._walk()
        try:
            for gateway, population in (await self._gateways.populations()).items():
                totals[ScopeKind.GATEWAY, gateway] = population
        except StoreUnavailable:
            return  # the sweep says so; lifetimes were seen all the same
        self._brakes.count(totals)

    def to_tell(self, waiting: Iterable[str]) -> list[str]:
        """Give some who wait and were not told so, and some who were told and wait no more."""
        held = set(waiting)
        fresh = [uid for uid in held if uid not in self._told][:TOLD_AT_ONCE]
        freed = [uid for uid in self._told if uid not in held][:TOLD_AT_ONCE]
        self._told.update(fresh)
        self._told.difference_update(freed)
        return fresh + freed

    def _walk(self) -> Counter[Scope]:
        now, totals = self._clock(), Counter[Scope]()
        for session in self._sessions:
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
