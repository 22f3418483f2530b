"""What Redis says of a Session's clients, and when it is not believed."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from tests.support.builders import make_metadata, make_session, make_status
from tests.support.controller_rig import ControllerRig
from tests.support.records import bend

from gpusession.api.session import (
    EXPIRY_OVERRIDE_ANNOTATION,
    Heartbeat,
    Idle,
    Phase,
    Reason,
    RecordState,
    Session,
)
from gpusession.controller.brakes import CLUSTER
from gpusession.controller.lives import Lives, as_vitals
from gpusession.rules.brake import ScopeKind
from gpusession.rules.continuity import Tick, Tolerances, Watch
from gpusession.rules.expiry import Fresh, Overdue, Unheard
from gpusession.rules.observation import ABSENT, UNSEEN, Life, Look
from gpusession.store.client import RedisClient
from gpusession.store.keys import ANNOUNCED
from gpusession.store.sessions import SessionStore, Sighting

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
BEATING = Heartbeat(period_seconds=1, failure_threshold=1, initial_delay_seconds=0)
TOLERANCES = Tolerances()


class Desk:
    """Looks at the rig's Redis under a watch of the test's own."""

    def __init__(self, rig: ControllerRig) -> None:
        self.rig = rig
        self.brakes = rig.liveness.sweeper._brakes
        self.watch = Watch()
        self.lives = Lives(
            rig.store,
            watching=lambda: self.watch,
            brakes=self.brakes,
            usage=rig.liveness.usage,
            tolerances=TOLERANCES,
        )

    async def opens(self, *, node: str = "nowhere", override: str = "", **spec: Any) -> Session:
        """Give an Active Session whose record is a day old; it has a neighbour on its node."""
        annotations = {EXPIRY_OVERRIDE_ANNOTATION: override} if override else {}
        session = make_session(
            metadata=make_metadata(annotations=annotations),
            status=msgspec.structs.replace(make_status(Phase.ACTIVE), node_name=node),
            **{"heartbeat": BEATING} | spec,
        )
        self.rig.sessions.keep(session)
        self.brakes.count({CLUSTER: 2, (ScopeKind.NODE, node): 2})
        await self.rig.records.open(session, session.status)
        await bend(self.rig.redis, "s-1", hb=1, first=1, act=1, gw="g-1")
        await self.watches()
        return session

    async def watches(self, *, ahead: timedelta = timedelta(), ago: float = 0.0) -> None:
        """Have watched for a day, with the latest tick so long ago, by a clock that is ahead."""
        sighting = await self.rig.store.read("s-1")
        assert sighting is not None
        at = asyncio.get_running_loop().time() - ago
        now = sighting.now + ahead - timedelta(seconds=ago)
        tick = Tick(
            run_id="r", replication_id="r", is_primary=True, remembers=True, gateways=1,
            now=now, sent_at=at, answered_at=at,
        )  # fmt: skip
        self.watch = Watch(since=now - DAY, heard_since=now - DAY, last=tick)

    def turn(self) -> None:
        """Give the Session its turn to go."""
        self.brakes.note("s-1", node="nowhere", gateway="g-1", overdue=True)
        assert self.brakes.advance()[0] == ["s-1"]


@pytest.fixture
async def desk(rig: ControllerRig) -> AsyncIterator[Desk]:
    """Give a desk; the agent of node `nowhere` answers."""
    yield Desk(rig)  # noqa: PT022 - the rig ends after it


def life(seen: Life | Look) -> Life:
    """Expect that there is a record."""
    assert isinstance(seen, Life)
    return seen


def reason(seen: Life) -> Reason | None:
    """Give why it must end, None where it is fresh."""
    return seen.liveness.reason if isinstance(seen.liveness, Overdue) else None


async def test_silent_session_whose_turn_it_is_may_go(desk: Desk) -> None:
    """Nothing holds it, and the claim knows what was judged, and when."""
    session = await desk.opens()
    desk.turn()

    seen = life(await desk.lives.look(session))

    assert (reason(seen), seen.held, seen.pauses) == (Reason.HEARTBEAT_LOST, None, False)
    assert seen.watched_since == desk.watch.since


async def test_missing_record_is_absent(desk: Desk) -> None:
    """It proves nothing, and is to be made again."""
    session = await desk.opens()
    await desk.rig.redis.call("FLUSHALL")

    assert await desk.lives.look(session) is ABSENT


@pytest.mark.parametrize("ahead", [2, -10], ids=["went back", "went ahead"])
async def test_clock_that_does_not_fit_the_latest_tick_is_not_believed(
    desk: Desk, ahead: int
) -> None:
    """Another server answers, or its clock was moved."""
    session = await desk.opens()
    desk.turn()
    await desk.watches(ahead=timedelta(seconds=ahead))

    assert await desk.lives.look(session) is UNSEEN


@pytest.mark.parametrize(("ago", "believed"), [(4.0, True), (5.5, False)])
async def test_latest_tick_must_be_recent(desk: Desk, ago: float, *, believed: bool) -> None:
    """Redis may have been away since, and what clients said with it."""
    session = await desk.opens()
    desk.turn()
    await desk.watches(ago=ago)

    assert isinstance(await desk.lives.look(session), Life) is believed


async def test_without_a_turn_it_is_held_and_counted(desk: Desk) -> None:
    """Whatever led to the look: from here on it waits for its turn."""
    session = await desk.opens()

    seen = life(await desk.lives.look(session))

    assert (seen.held, seen.pauses) == ("others that fell silent go first", False)
    assert desk.brakes.advance()[0] == ["s-1"]


async def test_full_brake_holds_it_and_says_so(desk: Desk) -> None:
    """The others of the cluster fell silent as well."""
    session = await desk.opens()
    for index in range(9):
        desk.brakes.note(f"x-{index}", node="", gateway="", overdue=False)
    desk.brakes.advance()

    seen = life(await desk.lives.look(session))

    assert seen.held is not None
    assert seen.pauses


async def test_signature_passes_the_brake(desk: Desk) -> None:
    """A human knows better."""
    session = await desk.opens(override="ada")

    assert life(await desk.lives.look(session)).held is None


async def test_idleness_needs_no_turn(desk: Desk) -> None:
    """Many who are idle at once prove nothing about an observer."""
    idle = Idle(timeout_seconds=1, signals=("Client",))
    session = await desk.opens(heartbeat=Heartbeat(period_seconds=0), idle=idle)

    seen = life(await desk.lives.look(session))

    assert (reason(seen), seen.held) == (Reason.IDLE, None)


@pytest.mark.parametrize("answers", [True, False])
async def test_agent_of_a_silent_node_is_asked_first(desk: Desk, *, answers: bool) -> None:
    """If it does not answer either, the way to the node may be what is broken."""
    session = await desk.opens()
    desk.brakes.count({CLUSTER: 9, (ScopeKind.NODE, "nowhere"): 1})
    desk.turn()
    if not answers:
        desk.rig.agent.usage_report = None

    seen = life(await desk.lives.look(session))

    assert (seen.held is None, seen.pauses) == (answers, not answers)


async def test_who_may_still_be_heard_keeps_its_turn(desk: Desk) -> None:
    """The gateway that heard it last stands still; after that it needs no other turn."""
    session = await desk.opens()
    await desk.rig.redis.call("ZADD", ANNOUNCED, 5, "g-1")
    desk.turn()

    waits = life(await desk.lives.look(session))
    await desk.rig.redis.call("ZADD", ANNOUNCED, 10**13, "g-1")
    goes = life(await desk.lives.look(session))

    assert isinstance(waits.liveness, Unheard)
    assert (reason(goes), goes.held) == (Reason.HEARTBEAT_LOST, None)


async def test_fresh_session_is_forgotten_by_the_brakes(desk: Desk) -> None:
    """It is silent no more."""
    session = await desk.opens()
    desk.turn()
    clock = await desk.rig.redis.call("TIME")
    await bend(desk.rig.redis, "s-1", hb=int(clock[0]) * 1000)

    seen = life(await desk.lives.look(session))

    assert isinstance(seen.liveness, Fresh)
    assert desk.brakes.held("s-1") is not None
    assert desk.brakes._silent == {}


async def test_end_that_has_begun_waits_for_no_turn(desk: Desk) -> None:
    """Else it would take the turns of others all through its grace."""
    session = await desk.opens()
    await bend(desk.rig.redis, "s-1", state="pending", until=9_999_999_999_999)

    seen = life(await desk.lives.look(session))

    assert (seen.vitals.stage, seen.held) == (RecordState.PENDING, None)
    assert list(desk.brakes.overdue()) == []


async def test_relief_of_a_full_brake_is_a_fresh_threshold(desk: Desk) -> None:
    """Of the node's own Sessions; they were held as long as nobody could tell."""
    session = await desk.opens()
    desk.turn()
    desk.brakes._relieved[ScopeKind.NODE, "nowhere"] = asyncio.get_running_loop().time() - 0.5

    assert reason(life(await desk.lives.look(session))) is None
    await asyncio.sleep(0.6)
    await desk.watches()
    assert reason(life(await desk.lives.look(session))) is Reason.HEARTBEAT_LOST


async def test_lost_redis_is_unseen(desk: Desk) -> None:
    """No error, and no evidence."""
    session = await desk.opens()

    async with RedisClient("redis://127.0.0.1:1", timeout=SECOND) as nobody:
        desk.lives._store = SessionStore(nobody)

        assert await desk.lives.look(session) is UNSEEN


async def test_vitals_are_the_record(desk: Desk) -> None:
    """Field by field."""
    await desk.opens()
    fields = {"busy": 9, "dc": 3, "gpu": 4, "gpuseen": 6, "gpusince": 5, "doubt": 7}
    await bend(desk.rig.redis, "s-1", n=8, close=1, rev=1, until=10, **fields)

    vitals = as_vitals(await sighting(desk))

    moments = [vitals.busy_until, vitals.disconnected, vitals.gpu_busy, vitals.gpu_seen]
    moments += [vitals.gpu_since, vitals.doubted, vitals.pending_until, vitals.beat]
    assert [_milliseconds(m) for m in moments] == [9, 3, 4, 6, 5, 7, 10, 1]
    assert (vitals.counter, vitals.closed, vitals.revoked) == (8, True, True)


async def sighting(desk: Desk) -> Sighting:
    """Read the record, which is there."""
    seen = await desk.rig.store.read("s-1")
    assert seen is not None
    return seen


def _milliseconds(moment: datetime | None) -> int:
    assert moment is not None
    return round(moment.timestamp() * 1000)
