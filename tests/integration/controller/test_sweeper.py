"""The sweep of the deadlines on a real Redis, tick by tick; beats are a second apart."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from tests.support.builders import NOW, make_metadata, make_session, make_status
from tests.support.cluster import running
from tests.support.records import bend
from tests.support.redis_server import RedisServer

from gpusession.api.session import Heartbeat, Idle, Phase, Reason, Session
from gpusession.controller.brakes import Brakes
from gpusession.controller.census import Census
from gpusession.controller.queue import Priority
from gpusession.controller.sessions import SessionCache
from gpusession.controller.sweeper import Cadence, Source, Sweeper
from gpusession.errors import StoreUnavailable
from gpusession.rules.brake import BrakeLimits
from gpusession.rules.continuity import Break, Tolerances
from gpusession.rules.outcome import pending_destroy
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import ClientStore
from gpusession.store.deadlines import DeadlineStore
from gpusession.store.gateways import GatewayRegistry
from gpusession.store.pulse import Pulse
from gpusession.store.sessions import LivenessSpec, SessionStore

SECOND = timedelta(seconds=1)
NONE = timedelta()
BEATING = Heartbeat(period_seconds=1, failure_threshold=2, initial_delay_seconds=0)
IDLING = Idle(timeout_seconds=1, signals=("Client",))
LIMITS = BrakeLimits(window=timedelta(seconds=2))


class Floor:
    """A sweeper and all that it sweeps, makes ready and asks to be restored."""

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self.store, self.gateways = SessionStore(client), GatewayRegistry(client)
        self.sessions = SessionCache()
        self.suspects: list[tuple[str, Priority]] = []
        self.restored = 0
        self.now = 1000.0
        self.brakes = Brakes(LIMITS, works=lambda _: None, clock=lambda: self.now)
        self.sweeper = self.make_sweeper()

    def make_sweeper(self, **tolerances: timedelta) -> Sweeper:
        """Give a sweeper, as a new leader has one."""
        return Sweeper(
            Source(Pulse(self.client), DeadlineStore(self.client), self.gateways),
            brakes=self.brakes,
            sessions=self.sessions,
            census=Census(
                sessions=self.sessions,
                brakes=self.brakes,
                gateways=self.gateways,
                suspect=self.suspect,
                clock=lambda: NOW,
                period=SECOND,
            ),
            suspect=self.suspect,
            restore=self._restore,
            cadence=Cadence(timedelta(milliseconds=20), Tolerances(**tolerances)),
        )

    def suspect(self, uid: str, priority: Priority) -> None:
        """Remember whose key was made ready."""
        self.suspects.append((uid, priority))

    def _restore(self) -> None:
        self.restored += 1

    async def opens(self, uid: str = "s-1", phase: Phase = Phase.ACTIVE, **spec: Any) -> Session:
        """Give a Session with its record."""
        session = make_session(phase, metadata=make_metadata(uid=uid), **spec)
        self.sessions.keep(session)
        beat, idle = session.spec.heartbeat, session.spec.idle
        period = timedelta(seconds=beat.period_seconds) if beat else NONE
        watched = LivenessSpec(
            heartbeat_period=period,
            heartbeat_threshold=period * beat.failure_threshold if beat else NONE,
            initial_delay=NONE,
            idle_timeout=timedelta(seconds=idle.timeout_seconds) if idle else NONE,
            signals=idle.signals if idle else (),
            disconnect_grace=SECOND,
        )
        await self.store.open(
            uid=uid, namespace="lab", name=uid, user=None, node="node-a",
            lifetime=timedelta(hours=1), liveness=watched,
        )  # fmt: skip
        return session

    async def ages(self, uid: str = "s-1", **fields: int | str) -> None:
        """Let a record be as if nobody was heard for a day, and due to be looked at."""
        await bend(self.client, uid, **{"hb": 1, "first": 1, "act": 1} | fields)
        await self.client.call("ZADD", keys.DEADLINES, "XX", 1, uid)

    async def score(self, uid: str = "s-1") -> float:
        """Give when a record is to be looked at, from now on in seconds."""
        at = float(await self.client.call("ZSCORE", keys.DEADLINES, uid))
        clock = await self.client.call("TIME")
        return at / 1000 - int(clock[0]) - int(clock[1]) / 1e6

    async def sweeps(self, seconds: float) -> None:
        """Sweep for so long, with a gateway that lives."""
        ends = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < ends:
            await self.gateways.announce("g-1", timedelta(seconds=5))
            await self.sweeper.sweep()
            await asyncio.sleep(0.05)

    @property
    def woken(self) -> set[str]:
        """Whose keys were made ready."""
        return {uid for uid, _ in self.suspects}


@pytest.fixture
async def floor(own_redis: RedisServer) -> AsyncIterator[Floor]:
    """Give a sweeper on a Redis of its own, with one gateway."""
    async with RedisClient(own_redis.url, timeout=SECOND) as client:
        floor = Floor(client)
        await floor.gateways.announce("g-1", timedelta(seconds=30))
        yield floor
        own_redis.resume()


async def test_silence_from_before_the_watch_is_put_off(floor: Floor) -> None:
    """A new leader looks again once the Session can be late, and wakes nobody till then."""
    await floor.opens(heartbeat=BEATING)
    await floor.ages()

    await floor.sweeper.sweep()

    assert (floor.woken, floor.brakes._counts) == (set(), {})
    assert 1.05 < await floor.score() <= 1.25


async def test_silence_counts_before_it_is_ripe(floor: Floor) -> None:
    """A quarter after its period it is late; then it is looked at when it is ripe."""
    await floor.opens(heartbeat=BEATING)
    await floor.ages()

    await floor.sweeps(1.6)

    assert floor.brakes._silent.keys() == {"s-1"}
    assert floor.woken == set()
    assert 0 < await floor.score() <= 0.5


async def test_ripe_silence_gets_its_turn(floor: Floor) -> None:
    """A whole threshold was watched, so somebody looks at the Session."""
    await floor.opens(heartbeat=BEATING)
    await floor.ages()

    await floor.sweeps(2.5)

    assert floor.suspects == [("s-1", Priority.HEARTBEAT)]


async def test_one_that_beats_is_left_alone(floor: Floor) -> None:
    """Neither counted nor woken."""
    await floor.opens(heartbeat=BEATING)
    clients = ClientStore(floor.client)
    await clients.mint("s-1", "digest", timedelta(minutes=30))

    for _ in range(10):
        await clients.beats([("s-1", "digest")], "g-1")
        await floor.sweeps(0.25)

    assert (floor.woken, floor.brakes._counts) == (set(), {})


async def test_without_a_gateway_nothing_counts(floor: Floor) -> None:
    """The lease brings it again."""
    await floor.gateways.leave("g-1")
    await floor.opens(heartbeat=BEATING)
    await floor.ages()

    await floor.sweeper.sweep()

    assert (floor.woken, floor.brakes._counts) == (set(), {})
    assert 28 < await floor.score() <= 30


async def test_disconnect_counts_as_soon_as_its_grace_is_over(floor: Floor) -> None:
    """It needs no threshold."""
    await floor.opens()
    await floor.sweeper.sweep()
    await floor.ages(dc=1)

    await floor.sweeper.sweep()

    assert floor.suspects == [("s-1", Priority.HEARTBEAT)]


@pytest.mark.parametrize("signals", [("Client",), ("GPU",)], ids=str)
async def test_idleness_is_put_off_until_it_was_watched(
    floor: Floor, signals: tuple[Any, ...]
) -> None:
    """A whole timeout of it."""
    await floor.opens(idle=Idle(timeout_seconds=60, signals=signals))
    await floor.ages()

    await floor.sweeper.sweep()

    assert floor.woken == set()
    assert 58 < await floor.score() <= 60


async def test_idleness_of_a_gpu_needs_no_gateway(floor: Floor) -> None:
    """The agent speaks of it, and no client could."""
    await floor.gateways.leave("g-1")
    await floor.opens(idle=Idle(timeout_seconds=1, signals=("GPU",)))
    await floor.sweeper.sweep()
    await floor.ages()
    await asyncio.sleep(1.1)

    await floor.sweeper.sweep()
    await floor.ages()
    await floor.sweeper.sweep()

    assert floor.suspects[-1:] == [("s-1", Priority.IDLE)]


async def test_watched_idleness_is_looked_at(floor: Floor) -> None:
    """The brake has no part in it."""
    await floor.opens(idle=IDLING)

    await floor.sweeps(1.5)

    assert floor.suspects == [("s-1", Priority.IDLE)]


@pytest.mark.parametrize(
    ("fields", "priority"),
    [
        pytest.param({"close": 1}, Priority.EXPLICIT, id="closed"),
        pytest.param({"rev": 1}, Priority.REVOKED, id="revoked"),
        pytest.param({"cap": 1}, Priority.IDLE, id="lifetime"),
        pytest.param({"state": "releasing"}, Priority.EXPLICIT, id="claimed and not written"),
        pytest.param({"n": "?"}, Priority.EXPLICIT, id="not whole"),
    ],
)
async def test_whatever_needs_no_proof_is_woken_at_once(
    floor: Floor, fields: dict[str, Any], priority: Priority
) -> None:
    """With the priority of its reason."""
    await floor.opens()
    await floor.ages(**({"hb": "?"} if fields == {"n": "?"} else fields))

    await floor.sweeper.sweep()

    assert floor.suspects == [("s-1", priority)]


async def test_release_under_way_is_left_to_itself(floor: Floor) -> None:
    """Its pauses grow; a wake every 30 s would cut them short."""
    await floor.opens(phase=Phase.PENDING_DESTROY)
    await floor.ages(state="releasing")

    await floor.sweeper.sweep()

    assert floor.woken == set()


async def test_grace_that_is_over_is_woken(floor: Floor) -> None:
    """A Session in its grace waits for just that."""
    session = await floor.opens()
    waiting = pending_destroy(
        make_status(Phase.ACTIVE), Reason.IDLE, now=NOW, grace=timedelta(seconds=9)
    )
    metadata = make_metadata(uid="s-1", resource_version="99")
    floor.sessions.keep(make_session(status=waiting, metadata=metadata))
    await floor.ages(state="pending", why="Idle", until=1)

    await floor.sweeper.sweep()

    assert session.metadata.uid in floor.woken


async def test_record_without_a_session_wakes_nobody(floor: Floor) -> None:
    """The resync forgets it, or the watch brings the Session."""
    await floor.opens(heartbeat=BEATING)
    floor.sessions.drop("s-1")
    await floor.ages()

    await floor.sweeps(2.5)

    assert floor.woken == set()


async def test_break_forgets_who_was_silent_and_has_records_restored(floor: Floor) -> None:
    """Their silence rests on what may be lost."""
    await floor.opens(heartbeat=BEATING)
    await floor.sweeps(0.1)
    floor.brakes.note("s-1", node="node-a", gateway="g-1", overdue=True)
    await floor.client.call("FLUSHALL")

    await floor.sweeper.sweep()

    assert floor.sweeper.watch.broken_by is Break.REWOUND
    assert (floor.woken, floor.restored) == (set(), 2)


async def test_failed_sweep_leaves_the_watch_to_the_next_tick(
    own_redis: RedisServer, floor: Floor
) -> None:
    """Nothing that was counted is lost by it, and nothing is proven in between."""
    floor.sweeper = floor.make_sweeper(longest_gap=timedelta(seconds=1))
    await floor.sweeper.sweep()
    since = floor.sweeper.watch.since
    own_redis.pause()

    with pytest.raises(StoreUnavailable):
        await floor.sweeper.sweep()

    assert floor.sweeper.watch.since == since
    assert floor.sweeper.proof(None) is None


async def test_tick_after_a_gap_begins_the_watch_anew(own_redis: RedisServer, floor: Floor) -> None:
    """Beats of that time may be lost."""
    floor.sweeper = floor.make_sweeper(longest_gap=timedelta(milliseconds=300))
    await floor.sweeper.sweep()
    since = floor.sweeper.watch.since
    own_redis.pause()
    await asyncio.sleep(0.5)
    own_redis.resume()

    await floor.sweeper.sweep()

    assert floor.sweeper.watch.since != since
    assert floor.sweeper.watch.broken_by is Break.GAP


async def test_run_goes_on_after_a_redis_that_was_away(
    own_redis: RedisServer, floor: Floor
) -> None:
    """A sweep that fails is no end of the sweeping."""
    sweeper = floor.make_sweeper()
    async with running(sweeper.run()):
        own_redis.pause()
        await asyncio.sleep(1.2)
        own_redis.resume()
        await asyncio.sleep(0.5)

    assert sweeper.watch.last is not None


async def test_proof_is_of_one_watch_only(floor: Floor) -> None:
    """A claim that was judged under another one rests on nothing."""
    await floor.sweeper.sweep()
    since = floor.sweeper.watch.since
    assert since is not None

    assert floor.sweeper.proof(since) is floor.sweeper.proof(None) is not None
    assert floor.sweeper.proof(since - SECOND) is None


def test_nothing_is_proven_before_the_first_tick() -> None:
    """Nor is there anything to claim with."""
    assert Floor(RedisClient("redis://127.0.0.1:1", timeout=SECOND)).sweeper.proof(None) is None


async def test_sessions_of_a_dead_gateway_have_a_fresh_threshold(floor: Floor) -> None:
    """All of them, page by page."""
    await floor.opens(heartbeat=BEATING)
    await floor.ages(**{"c:g-2:1": 1})
    others = [f"o-{index}" for index in range(450)]
    await floor.client.call("SADD", keys.gateway("g-2"), "s-1", *others)
    await floor.client.call("ZADD", keys.GATEWAYS, 1, "g-2")

    await floor.sweeper.sweep()

    sighting = await floor.store.read("s-1")
    assert sighting is not None
    assert sighting.now - sighting.record.hb < SECOND
    assert await floor.client.call("SCARD", keys.gateway("g-2")) == 0


async def test_open_brake_gives_everybody_a_whole_threshold(floor: Floor) -> None:
    """What fell silent with the crowd is judged by what it does from then on."""
    await floor.sweeps(0.2)
    since = floor.sweeper.watch.since
    floor.brakes.count({})
    for index in range(9):
        floor.brakes.note(f"x-{index}", node="", gateway="", overdue=True)
    floor.brakes.advance()
    floor.now += 3
    floor.brakes.advance()

    floor.now += 4
    await floor.sweeper.sweep()

    assert floor.sweeper.watch.since != since
    assert floor.sweeper.watch.since == floor.sweeper.watch.now


async def test_paused_sessions_are_looked_at_so_that_they_can_be_told(floor: Floor) -> None:
    """With the least of priorities."""
    for index in range(9):
        floor.brakes.note(f"x-{index}", node="", gateway="", overdue=True)

    await floor.sweeper.sweep()
    assert floor.woken == set()  # the first tick of a watch forgets what was before
    for index in range(9):
        floor.brakes.note(f"x-{index}", node="", gateway="", overdue=True)
    await floor.sweeper.sweep()

    assert {priority for _, priority in floor.suspects} == {Priority.RESYNC}
    assert len(floor.woken) == 9
