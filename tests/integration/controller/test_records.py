"""Keeping Redis' records in step, with a Redis that comes and goes."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import msgspec
import pytest
from tests.support.builders import NOW, make_metadata, make_session
from tests.support.redis_server import RedisServer

from gpusession.api.session import Heartbeat, Idle, Phase, Session
from gpusession.controller.records import PATIENCE, REST, RecordKeeper
from gpusession.controller.sessions import SessionCache
from gpusession.store.client import RedisClient
from gpusession.store.sessions import Proof, SessionStore

SHORT = 2 * PATIENCE.total_seconds()
"""Patience and as much again for a busy machine; Redis' own limit is ten times that."""


class Desk:
    """A record keeper, the Sessions that it knows, and the store that it keeps."""

    def __init__(self, client: RedisClient) -> None:
        self.proof: Proof | None = None
        self.sessions = SessionCache()
        self.store = SessionStore(client)
        self.records = RecordKeeper(
            self.store, self.sessions, proof=lambda: self.proof, clock=lambda: NOW
        )

    def knows(self, uid: str, phase: Phase) -> Session:
        """Have the cache know a Session."""
        session = make_session(phase, metadata=make_metadata(uid=uid))
        self.sessions.keep(session)
        return session

    async def timed_forget(self) -> tuple[bool, float]:
        """Forget a record; give the answer and how long it took."""
        began = asyncio.get_running_loop().time()
        done = await self.records.forget("s-1")
        return done, asyncio.get_running_loop().time() - began


@pytest.fixture
async def desk(own_redis: RedisServer) -> AsyncIterator[Desk]:
    """Give a record keeper on a Redis of its own."""
    async with RedisClient(own_redis.url, timeout=timedelta(seconds=5)) as client:
        yield Desk(client)
        own_redis.resume()


async def test_open_tells_whose_the_record_is(desk: Desk) -> None:
    """The gateway reads namespace, name, user and node off the record."""
    session = make_session(Phase.ACTIVE, user="ann")

    opened = await desk.records.open(session, session.status)

    sighting = await desk.store.read("s-1")
    assert sighting is not None
    assert opened
    record = sighting.record
    assert (record.ns, record.name, record.user, record.node) == ("lab", "chat", "ann", "node-a")


async def test_open_hands_on_what_the_spec_asks_for(desk: Desk) -> None:
    """Thresholds are period times failures, and every duration keeps its unit."""
    heartbeat = Heartbeat(period_seconds=10, failure_threshold=4, initial_delay_seconds=7)
    idle = Idle(timeout_seconds=60, signals=("GPU",))
    session = make_session(
        Phase.ACTIVE, heartbeat=heartbeat, idle=idle, disconnect_grace_milliseconds=500
    )

    await desk.records.open(session, session.status)

    sighting = await desk.store.read("s-1")
    assert sighting is not None
    record = sighting.record
    assert (record.per.seconds, record.hbt.seconds) == (10, 40)
    assert record.first - record.hb == timedelta(seconds=47)
    assert (record.idt.seconds, record.sig) == (60, ("GPU",))
    assert record.dcg == timedelta(milliseconds=500)


@pytest.mark.parametrize(
    "spec",
    [
        {"heartbeat": None, "idle": None},
        {"heartbeat": Heartbeat(period_seconds=0), "idle": Idle(timeout_seconds=0)},
    ],
    ids=["null", "zero"],
)
async def test_open_asks_for_nothing_where_the_spec_does_not(
    desk: Desk, spec: dict[str, Heartbeat | Idle | None]
) -> None:
    """No heartbeat and no idle timeout, in both ways of writing it."""
    session = make_session(Phase.ACTIVE, **spec)

    await desk.records.open(session, session.status)

    sighting = await desk.store.read("s-1")
    assert sighting is not None
    record = sighting.record
    assert (record.per, record.hbt, record.idt) == (timedelta(0),) * 3


async def test_forget_removes_the_record(desk: Desk) -> None:
    """An ended Session leaves nothing in Redis."""
    session = make_session(Phase.ACTIVE)
    await desk.records.open(session, session.status)

    forgotten = await desk.records.forget("s-1")

    assert (forgotten, await desk.store.uids()) == (True, set())


async def test_dead_redis_holds_nobody_up(own_redis: RedisServer, desk: Desk) -> None:
    """A Redis that is down is a quick False, not an error: no end waits for it."""
    own_redis.kill()
    session = make_session(Phase.ACTIVE)

    opened = await desk.records.open(session, session.status)
    forgotten = await desk.records.forget("s-1")

    assert (opened, forgotten) == (False, False)


async def test_frozen_redis_delays_one_and_no_more(own_redis: RedisServer, desk: Desk) -> None:
    """The first write waits its quarter of a second, the next ones do not wait at all."""
    own_redis.pause()

    first, second = await desk.timed_forget(), await desk.timed_forget()

    assert (first[0], second[0]) == (False, False)
    assert second[1] < first[1] / 2


async def test_writes_go_on_when_redis_is_back(own_redis: RedisServer, desk: Desk) -> None:
    """After its rest the keeper tries again by itself."""
    own_redis.pause()
    await desk.records.forget("s-1")
    own_redis.resume()

    await asyncio.sleep(REST.total_seconds())

    assert await desk.records.forget("s-1")


async def test_repair_opens_what_is_missing(desk: Desk) -> None:
    """An Active Session whose record is lost gets it back; the others need none."""
    for phase in Phase:
        desk.knows(phase.lower(), phase)

    await desk.records.repair(listed=set())

    assert await desk.store.uids() == {"active"}


@pytest.mark.parametrize("phase", [None, Phase.DESTROYED], ids=["gone", "destroyed"])
async def test_repair_forgets_what_has_ended(desk: Desk, phase: Phase | None) -> None:
    """A record behind which no Session stands, or one that is over, goes."""
    session = make_session(Phase.ACTIVE)
    await desk.records.open(session, session.status)
    if phase is not None:
        desk.knows("s-1", phase)

    await desk.records.repair(listed=set() if phase is None else {"s-1"})

    assert await desk.store.uids() == set()


@pytest.mark.parametrize("phase", set(Phase) - {Phase.DESTROYED})
@pytest.mark.parametrize("is_listed", [True, False])
async def test_repair_never_forgets_the_living(
    desk: Desk, phase: Phase, *, is_listed: bool
) -> None:
    """A Session that has come since the list was made keeps its record as it is."""
    session = desk.knows("s-1", phase)
    await desk.records.open(session, session.status)
    before = await desk.store.read("s-1")

    await desk.records.repair(listed={"s-1"} if is_listed else set())

    after = await desk.store.read("s-1")
    assert before is not None
    assert after is not None
    assert after.record == before.record


async def test_repair_spares_what_is_listed_and_cannot_be_read(desk: Desk) -> None:
    """A Session that this version cannot read is listed but not known: it lives."""
    session = make_session(Phase.ACTIVE)
    await desk.records.open(session, session.status)

    await desk.records.repair(listed={"s-1"})

    assert await desk.store.uids() == {"s-1"}


async def test_repair_of_a_dead_redis_is_no_error(own_redis: RedisServer, desk: Desk) -> None:
    """Missing data is never an ended Session, and the sweep goes on."""
    desk.knows("s-1", Phase.ACTIVE)
    own_redis.kill()

    await desk.records.repair(listed={"s-1"})

    assert "s-1" in desk.sessions


async def test_newest_state_decides_what_is_opened(desk: Desk) -> None:
    """A Session that ended after the look at Redis is not opened again."""
    active = desk.knows("s-1", Phase.ACTIVE)
    ended = msgspec.structs.replace(
        make_session(Phase.DESTROYED),
        metadata=msgspec.structs.replace(active.metadata, resource_version="11"),
    )

    repairing = asyncio.create_task(desk.records.repair(listed={"s-1"}))
    await asyncio.sleep(0)
    desk.sessions.keep(ended)
    await repairing

    assert await desk.store.uids() == set()
