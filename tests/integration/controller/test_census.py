"""Counting all Sessions: totals of the brakes, lifetimes, and who is told of a pause."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.support.builders import NOW, make_metadata, make_session, make_status
from tests.support.redis_server import RedisServer

from gpusession.api.session import (
    ConditionStatus,
    ConditionType,
    Heartbeat,
    Phase,
    Reason,
    SessionStatus,
)
from gpusession.controller.brakes import CLUSTER, Brakes
from gpusession.controller.census import TOLD_AT_ONCE, Census
from gpusession.controller.queue import Priority
from gpusession.controller.sessions import SessionCache
from gpusession.rules.brake import BrakeLimits, ScopeKind
from gpusession.rules.conditions import timestamp, with_condition
from gpusession.store.client import RedisClient
from gpusession.store.gateways import GatewayRegistry

BEATING = Heartbeat()
HOUR = timedelta(hours=1)


class Office:
    """A census over Sessions of a test's own, with brakes whose clock stands still."""

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self.sessions = SessionCache()
        self.suspects: list[tuple[str, Priority]] = []
        self.brakes = Brakes(BrakeLimits(), works=lambda _: None, clock=lambda: 0.0)
        self.census = self.make_census()

    def make_census(self, period: timedelta = HOUR) -> Census:
        """Give a census, as a new leader has one."""
        return Census(
            sessions=self.sessions,
            brakes=self.brakes,
            gateways=GatewayRegistry(self.client),
            suspect=lambda uid, priority: self.suspects.append((uid, priority)),
            clock=lambda: NOW,
            period=period,
        )

    def knows(self, uid: str, status: SessionStatus | None = None, **spec: Any) -> None:
        """Have the cache know a Session; Active since NOW where nothing else is said."""
        metadata = make_metadata(uid=uid)
        status = make_status(Phase.ACTIVE) if status is None else status
        self.sessions.keep(make_session(metadata=metadata, status=status, **spec))

    def silence(self, *uids: str) -> None:
        """Let these be silent, and all brakes see it."""
        for uid in uids:
            self.brakes.note(uid, node="", gateway="", overdue=True)
        self.brakes.advance()

    @property
    def totals(self) -> Any:
        """What the brakes were told."""
        return dict(self.brakes._totals)


@pytest.fixture
async def office(own_redis: RedisServer) -> AsyncIterator[Office]:
    """Give a census on a Redis of its own."""
    async with RedisClient(own_redis.url, timeout=timedelta(seconds=1)) as client:
        yield Office(client)


def paused() -> SessionStatus:
    """Give the status of one that was told of a pause."""
    return with_condition(
        make_status(Phase.ACTIVE),
        ConditionType.EXPIRY_PAUSED,
        ConditionStatus.TRUE,
        reason=Reason.MASS_SILENCE,
        message="",
        now=NOW,
    )


async def test_totals_count_who_could_fall_silent(office: Office) -> None:
    """Active ones of whom beats are expected, per cluster and per node."""
    for index in range(3):
        office.knows(f"s-{index}", heartbeat=BEATING)
    office.knows("quiet", heartbeat=Heartbeat(period_seconds=0))
    office.knows("waits", make_status(Phase.PENDING), heartbeat=BEATING)
    office.knows("ends", make_status(Phase.PENDING_DESTROY), heartbeat=BEATING)

    await office.census.take_if_due()

    assert office.totals == {CLUSTER: 3, (ScopeKind.NODE, "node-a"): 3}


async def test_totals_of_gateways_are_their_connections(office: Office) -> None:
    """As far as they live."""
    await GatewayRegistry(office.client).announce("g-1", HOUR)
    await office.client.call("SADD", "gs:g:g-1", "a", "b")

    await office.census.take_if_due()

    assert office.totals == {(ScopeKind.GATEWAY, "g-1"): 2}


async def test_census_is_taken_once_per_period(office: Office) -> None:
    """It walks over everything."""
    await office.census.take_if_due()
    office.knows("s-1", heartbeat=BEATING)

    await office.census.take_if_due()

    assert office.totals == {}


async def test_large_walk_lets_others_run(office: Office) -> None:
    """Nobody waits for it, and everybody is counted."""
    for index in range(1200):
        office.knows(f"s-{index}", heartbeat=BEATING)

    await office.census.take_if_due()

    assert office.totals[CLUSTER] == 1200


async def test_lifetime_is_seen_without_redis(own_redis: RedisServer, office: Office) -> None:
    """It is counted in etcd, so it holds when Redis is gone."""
    began = timestamp(NOW - HOUR)
    old = msgspec.structs.replace(make_status(Phase.ACTIVE), active_since=began)
    office.knows("old", old, max_lifetime_seconds=3600)
    office.knows("young", old, max_lifetime_seconds=3601)
    own_redis.kill()

    await office.census.take_if_due()

    assert office.suspects == [("old", Priority.IDLE)]


async def test_lost_redis_leaves_the_totals_as_they_were(
    own_redis: RedisServer, office: Office
) -> None:
    """Without the gateways' numbers a count is no whole one."""
    office.knows("s-1", heartbeat=BEATING)
    census = office.make_census(period=timedelta())
    await census.take_if_due()
    before = office.totals
    own_redis.kill()
    office.knows("s-2", heartbeat=BEATING)

    await census.take_if_due()

    assert office.totals == before


async def test_paused_are_told_in_portions_and_once(office: Office) -> None:
    """A disaster must not become a storm of status writes."""
    office.silence(*(f"s-{index}" for index in range(TOLD_AT_ONCE + 5)))

    first, second, third = (office.census.to_tell() for _ in range(3))

    assert (len(first), len(second), third) == (TOLD_AT_ONCE, 5, [])
    assert len({*first, *second}) == TOLD_AT_ONCE + 5


async def test_mere_turn_in_the_queue_is_not_told(office: Office) -> None:
    """Else nobody would tell those who wait when the brake closes at last."""
    office.brakes.count({CLUSTER: 1000})
    office.silence(*(f"s-{index}" for index in range(40)))
    before = office.census.to_tell()

    office.brakes.count({CLUSTER: 40})
    office.brakes.advance()

    assert before == []
    assert len(office.census.to_tell()) == TOLD_AT_ONCE


async def test_end_of_a_pause_is_told_as_well(office: Office) -> None:
    """Each who was told hears of it."""
    uids = {f"s-{index}" for index in range(6)}
    office.silence(*uids)
    office.census.to_tell()

    office.brakes.forget_all()

    assert set(office.census.to_tell()) == uids
    assert office.census.to_tell() == []


async def test_new_leader_knows_from_the_status_who_was_told(office: Office) -> None:
    """The old one cannot say."""
    office.knows("s-1", paused())

    await office.census.take_if_due()

    assert office.census.to_tell() == ["s-1"]


async def test_whoever_is_still_paused_is_not_told_again(office: Office) -> None:
    """By a new leader either."""
    uids = [f"s-{index}" for index in range(6)]
    for uid in uids:
        office.knows(uid, paused())
    office.silence(*uids)

    await office.census.take_if_due()

    assert office.census.to_tell() == []
