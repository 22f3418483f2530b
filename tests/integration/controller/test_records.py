"""Keeping Redis' records in step, with a Redis that comes and goes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from tests.support.builders import NOW, make_metadata, make_session, make_status
from tests.support.cluster import running
from tests.support.redis_server import RedisServer

from gpusession.api.session import Heartbeat, Idle, Phase, Reason, RecordState, Session
from gpusession.controller.records import PATIENCE, REST, RecordKeeper
from gpusession.controller.sessions import SessionCache
from gpusession.rules.actions import Claim
from gpusession.rules.conditions import timestamp
from gpusession.rules.observation import Outcome
from gpusession.rules.outcome import pending_destroy
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import ClientStore
from gpusession.store.identities import IdentityStore
from gpusession.store.pulse import Pulse
from gpusession.store.sessions import Proof, SessionStore

SHORT = 1.4 * PATIENCE.total_seconds()
"""Longer than other writes wait, with most of what a claim waits left for a busy machine."""


class Desk:
    """A record keeper, the Sessions that it knows, and the store that it keeps."""

    def __init__(self, client: RedisClient) -> None:
        self.proof: Proof | None = None
        self.since: datetime | None = None
        self.pulse = Pulse(client)
        self.sessions = SessionCache()
        self.store = SessionStore(client)
        self.clients = ClientStore(client)
        self.identities = IdentityStore(client)
        self.records = RecordKeeper(
            self.store, self.sessions, proof=self._proof_since, clock=lambda: NOW
        )

    def _proof_since(self, since: datetime | None) -> Proof | None:
        return self.proof if since in (None, self.since) else None

    async def watch(self) -> None:
        """Tick, so that a claim has something to rest on."""
        self.proof, self.since = (await self.pulse.tick()).proof, NOW

    async def claim(self, uid: str = "s-1", **changed: Any) -> Outcome:
        """Claim a record in the state in which it is read, or otherwise."""
        sighting = await self.store.read(uid)
        counter = sighting.record.n if sighting else 0
        action = Claim(RecordState.RELEASING, Reason.IDLE, timedelta(), counter, NOW)
        return await self.records.claim(uid, replace(action, **changed))

    async def state(self, uid: str = "s-1") -> str | None:
        """Give how far a record says that its end has come."""
        sighting = await self.store.read(uid)
        return None if sighting is None else sighting.record.state

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


@pytest.mark.parametrize(("age", "is_lost"), [(0, False), (60, True)], ids=["first", "again"])
async def test_record_of_an_older_session_was_lost(desk: Desk, age: int, is_lost: bool) -> None:
    """And its clients' tokens with it, which some gateway may still know."""
    await desk.watch()
    session = make_session(Phase.ACTIVE)
    since = timestamp(NOW - timedelta(seconds=age))
    status = msgspec.structs.replace(session.status, active_since=since)

    await desk.records.open(session, status)

    assert await desk.clients.knock("s-1") is is_lost


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


@pytest.mark.parametrize("phase", [one for one in Phase if one is not Phase.DESTROYED])
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


def in_grace(uid: str = "s-1") -> Session:
    """Give a Session that may still be taken back."""
    status = pending_destroy(
        make_status(Phase.ACTIVE), Reason.IDLE, now=NOW, grace=timedelta(seconds=60)
    )
    return make_session(status=status, metadata=make_metadata(uid=uid), destroy_grace_seconds=60)


async def opened(desk: Desk) -> Session:
    """Give an Active Session with its record, on a watched Redis."""
    session = desk.knows("s-1", Phase.ACTIVE)
    await desk.records.open(session, session.status)
    await desk.watch()
    return session


async def test_claim_of_the_record_that_was_judged_is_won(desk: Desk) -> None:
    """And the record says so from then on."""
    await opened(desk)

    assert await desk.claim() is Outcome.WON
    assert await desk.state() == "releasing"


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        pytest.param({"counter": 1}, Outcome.RETURNED, id="heard since"),
        pytest.param({"watched_since": NOW + timedelta(1)}, Outcome.UNKNOWN, id="another watch"),
    ],
)
async def test_claim_on_anything_else_changes_nothing(
    desk: Desk, changed: dict[str, Any], outcome: Outcome
) -> None:
    """What was judged is not what is there."""
    await opened(desk)

    assert await desk.claim(**changed) is outcome
    assert await desk.state() == "active"


async def test_claim_without_a_record_or_a_watch_proves_nothing(desk: Desk) -> None:
    """Nobody is ended by what is missing."""
    unwatched = await desk.claim()
    await desk.watch()

    assert unwatched is await desk.claim() is Outcome.UNKNOWN


async def test_claim_at_a_server_that_forgot_us_proves_nothing(desk: Desk) -> None:
    """It may have forgotten a beat as well."""
    await opened(desk)
    await desk.pulse._client.call("DEL", "gs:tick")

    assert await desk.claim() is Outcome.UNKNOWN
    assert await desk.state() == "active"


async def test_claim_on_a_dead_redis_is_unknown(own_redis: RedisServer, desk: Desk) -> None:
    """Neither won nor lost, and no error."""
    await opened(desk)
    own_redis.kill()

    action = Claim(RecordState.RELEASING, Reason.IDLE, timedelta(), 0, NOW)
    assert await desk.records.claim("s-1", action) is Outcome.UNKNOWN


async def test_claim_outlasts_a_pause_of_redis(own_redis: RedisServer, desk: Desk) -> None:
    """One whose answer is lost may have been made, so it waits longer than other writes."""
    await opened(desk)
    own_redis.pause()
    action = Claim(RecordState.RELEASING, Reason.IDLE, timedelta(), None, NOW)

    async with asyncio.TaskGroup() as tasks:
        claiming = tasks.create_task(desk.records.claim("s-1", action))
        await asyncio.sleep(SHORT)
        own_redis.resume()

    assert claiming.result() is Outcome.WON


async def test_lost_record_of_a_grace_is_pending_again(desk: Desk) -> None:
    """The grace begins anew, also at a server that has forgotten our last tick."""
    session = in_grace()

    assert await desk.records.open(session, session.status)

    sighting = await desk.store.read("s-1")
    assert sighting is not None
    record = sighting.record
    assert (record.state, record.why) == (RecordState.PENDING, Reason.IDLE)
    assert record.until is not None
    assert timedelta(seconds=55) < record.until - sighting.now <= timedelta(seconds=60)


async def test_open_in_the_grace_takes_no_return_back(desk: Desk) -> None:
    """A record that is active by then says that a client has come back."""
    await opened(desk)
    session = in_grace()

    assert await desk.records.open(session, session.status)
    assert await desk.state() == "active"


async def test_restore_opens_what_is_missing(desk: Desk) -> None:
    """Active ones and those in their grace, without waiting for the resync."""
    await desk.watch()
    desk.knows("s-1", Phase.ACTIVE)
    desk.sessions.keep(in_grace("s-2"))
    desk.knows("s-3", Phase.PENDING_DESTROY)

    async with running(desk.records.run()):
        desk.records.restore()
        async with asyncio.timeout(5):
            while len(await desk.store.uids()) < 2:
                await asyncio.sleep(0.02)

    assert await desk.store.uids() == {"s-1", "s-2"}
    assert (await desk.state("s-1"), await desk.state("s-2")) == ("active", "pending")


@pytest.mark.parametrize("is_broken", [False, True])
async def test_repair_says_when_all_records_are_there_again(
    own_redis: RedisServer, desk: Desk, is_broken: bool
) -> None:
    """Until then nobody can say whose Sessions are not there; one that is not opened is missing."""
    await desk.watch()
    desk.knows("s-1", Phase.ACTIVE)
    before = await desk.identities.is_rebuilt()
    async with RedisClient(own_redis.url, timeout=timedelta(seconds=5)) as client:
        if is_broken:
            await client.call("SET", keys.DEADLINES, "x")

    await desk.records.repair(listed={"s-1"})

    assert (before, await desk.identities.is_rebuilt()) == (False, not is_broken)


async def test_restore_survives_a_dead_redis(own_redis: RedisServer, desk: Desk) -> None:
    """The next wish is heard."""
    desk.knows("s-1", Phase.ACTIVE)
    own_redis.pause()

    async with running(desk.records.run()):
        desk.records.restore()
        await asyncio.sleep(0.1)
        own_redis.resume()
        desk.records.restore()
        async with asyncio.timeout(5):
            while not await desk.store.uids():
                await asyncio.sleep(0.02)


async def test_reopened_session_is_just_heard(desk: Desk) -> None:
    """A claim in vain costs its clients nothing."""
    await opened(desk)
    await desk.claim()

    assert await desk.records.reopen("s-1")
    assert await desk.state() == "active"


async def test_revoked_session_is_told_as_revoked(desk: Desk) -> None:
    """Its tokens are void before the end is told."""
    await opened(desk)

    await desk.records.tell_ending("s-1", Reason.REVOKED)

    sighting = await desk.store.read("s-1")
    assert sighting is not None
    assert (sighting.record.rev, sighting.record.state) == (True, RecordState.RELEASING)
