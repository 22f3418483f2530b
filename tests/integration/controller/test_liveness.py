"""Silence, closes and returns, from a real Redis to a real apiserver; periods are a second."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.support.builders import make_release, make_status
from tests.support.cluster import Cluster, running, until
from tests.support.controller_rig import ControllerRig, utc_now

from gpusession.api.session import (
    FINALIZER,
    REVOKE_ANNOTATION,
    ConditionType,
    Phase,
    Reason,
    RecordState,
    Session,
)
from gpusession.api.usage import UsageReport
from gpusession.controller.queue import Priority
from gpusession.errors import Retry, Stale
from gpusession.kube.writer import KubeWriter
from gpusession.metrics import RECONCILES
from gpusession.rules.actions import Claim
from gpusession.rules.conditions import holds, timestamp
from gpusession.rules.observation import Outcome
from gpusession.store.clients import Answer, ClientStore
from gpusession.store.gateways import GatewayRegistry

GATEWAY = "g-1"
SECOND = timedelta(seconds=1)
QUIET_AGENT = UsageReport(boot_id="b")
"""An agent that answers, and says nothing of any Session."""
BEATING = {"heartbeat": {"periodSeconds": 1, "failureThreshold": 2, "initialDelaySeconds": 0}}
ClaimCall = Callable[[str, Claim], Awaitable[Outcome]]
NO_BEATS = {"heartbeat": {"periodSeconds": 0}}


class Clients:
    """The gateway's side of the store, and a gateway that lives as long as the with block."""

    def __init__(self, rig: ControllerRig) -> None:
        self.store = ClientStore(rig.redis)
        self.registry = GatewayRegistry(rig.redis)
        self._beating: set[str] = set()

    async def keep(self) -> None:
        """Renew the lease and bring the beats of those who live."""
        while True:
            await self.registry.announce(GATEWAY, SECOND)
            await self.beat(*self._beating)
            await asyncio.sleep(0.1)

    async def beat(self, *uids: str) -> list[Answer]:
        """Bring one beat of each."""
        return await self.store.beats([(uid, "digest") for uid in uids], GATEWAY) if uids else []

    async def admit(self, session: Session, *, beats: bool) -> None:
        """Give a Session a client with a token, who beats or not."""
        await self.store.mint(session.metadata.uid, "digest", timedelta(minutes=30))
        if beats:
            self._beating.add(session.metadata.uid)

    def silence(self, session: Session) -> None:
        """Let a client vanish."""
        self._beating.discard(session.metadata.uid)


@pytest.fixture
def clients(rig: ControllerRig) -> Clients:
    """Give the clients' side of the rig's Redis."""
    return Clients(rig)


@pytest.fixture(autouse=True)
async def _node(cluster: Cluster) -> None:
    """Make the Node of all Pods here: without it everything would end as NodeGone."""
    with suppress(Stale):
        await cluster.node("nowhere")


async def active(
    cluster: Cluster, rig: ControllerRig, name: str, *, since: timedelta = timedelta(), **spec: Any
) -> Session:
    """Give an Active Session with its record; its Pod lives."""
    pod = await cluster.pod(name)
    session = await cluster.session(name, finalizers=(FINALIZER,), **spec)
    status = msgspec.structs.replace(
        make_status(Phase.ACTIVE),
        pod_uid=pod.metadata.uid,
        node_name="nowhere",
        node_uid=None,
        active_since=timestamp(utc_now() - since),
    )
    written = await KubeWriter(rig.client).record_status(session.metadata, status)
    rig.sessions.keep(written)
    await rig.records.open(written, written.status)
    return written


@asynccontextmanager
async def at_work(
    rig: ControllerRig, *also: Any, usage: UsageReport | None = QUIET_AGENT
) -> AsyncIterator[None]:
    """Run the controller's side of liveness and one worker."""
    rig.agent.release_report = make_release()
    rig.agent.usage_report = usage
    tasks = [part() for part in rig.liveness.tasks]
    async with running(rig.worker.run(), *tasks, *also):
        yield


def state(rig: ControllerRig, session: Session) -> tuple[Phase | None, str]:
    """Give phase and reason as the controller knows them."""
    known = rig.sessions.get(session.metadata.uid)
    return (None, "") if known is None else (known.status.phase, known.status.reason)


def ended(rig: ControllerRig, session: Session, reason: Reason) -> bool:
    """Whether a Session has ended for this reason."""
    return state(rig, session) == (Phase.DESTROYED, reason)


async def test_silent_session_ends_and_its_neighbour_does_not(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """Both are watched alike; only one has a client."""
    silent = await active(cluster, rig, "silent", **BEATING)
    alive = await active(cluster, rig, "alive", **BEATING)
    await clients.admit(alive, beats=True)

    async with at_work(rig, clients.keep()):
        await until(lambda: ended(rig, silent, Reason.HEARTBEAT_LOST), what="the end")
        await asyncio.sleep(1)

    assert state(rig, alive) == (Phase.ACTIVE, Reason.BOUND)


async def test_client_who_falls_silent_ends_its_session(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """A whole threshold after its last beat."""
    session = await active(cluster, rig, "falls", **BEATING)
    await clients.admit(session, beats=True)

    async with at_work(rig, clients.keep()):
        await asyncio.sleep(2)
        before = state(rig, session)
        clients.silence(session)
        await until(lambda: ended(rig, session, Reason.HEARTBEAT_LOST), what="the end")

    assert before == (Phase.ACTIVE, Reason.BOUND)


async def test_silent_node_with_a_silent_agent_is_held(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """The network to the node may be what is broken."""
    session = await active(cluster, rig, "cut-off", **BEATING)

    async with at_work(rig, clients.keep(), usage=None):
        await asyncio.sleep(4)
        known = rig.sessions.get(session.metadata.uid)

    assert known is not None
    assert known.status.phase is Phase.ACTIVE
    assert holds(known.status, ConditionType.EXPIRY_PAUSED)


async def test_without_a_gateway_nobody_is_overdue(cluster: Cluster, rig: ControllerRig) -> None:
    """Nobody could be heard."""
    session = await active(cluster, rig, "deaf", **BEATING)

    async with at_work(rig):
        await asyncio.sleep(3)

    assert state(rig, session) == (Phase.ACTIVE, Reason.BOUND)


async def test_no_heartbeat_expected_is_none_missed(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """Period 0 means so."""
    session = await active(cluster, rig, "quiet", **NO_BEATS)

    async with at_work(rig, clients.keep()):
        await asyncio.sleep(3)

    assert state(rig, session) == (Phase.ACTIVE, Reason.BOUND)


async def test_seen_disconnect_ends_after_its_grace(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """Half a second suits short sessions."""
    spec = NO_BEATS | {"disconnectGraceMilliseconds": 500}
    session = await active(cluster, rig, "leaves", **spec)
    await clients.admit(session, beats=False)

    async with at_work(rig, clients.keep()):
        await asyncio.sleep(0.5)
        await clients.store.connect(session.metadata.uid, "digest", GATEWAY, "1")
        await asyncio.sleep(0.5)
        before = state(rig, session)
        await clients.store.disconnect(session.metadata.uid, GATEWAY, "1", evidence=True)
        await until(lambda: ended(rig, session, Reason.DISCONNECTED), what="the end")

    assert before == (Phase.ACTIVE, Reason.BOUND)


async def test_unused_session_ends_as_idle(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """Beats are no use."""
    spec = BEATING | {"idle": {"timeoutSeconds": 2, "signals": ["Client"]}}
    session = await active(cluster, rig, "idle", **spec)
    await clients.admit(session, beats=True)

    async with at_work(rig, clients.keep()):
        await until(lambda: ended(rig, session, Reason.IDLE), what="the end")


async def test_gpu_that_nobody_reports_on_is_not_idle(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """The agent says nothing, so nothing is known."""
    spec = NO_BEATS | {"idle": {"timeoutSeconds": 1, "signals": ["GPU"]}}
    session = await active(cluster, rig, "works", **spec)

    async with at_work(rig, clients.keep()):
        await asyncio.sleep(3)

    assert state(rig, session) == (Phase.ACTIVE, Reason.BOUND)


async def test_close_by_a_client_ends_at_once(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """It is the client's own wish, and needs no proof."""
    session = await active(cluster, rig, "closes", **NO_BEATS)
    await clients.admit(session, beats=False)

    async with at_work(rig, clients.keep()):
        await clients.store.close(session.metadata.uid, "digest")
        await until(lambda: ended(rig, session, Reason.EXPLICIT_CLOSE), what="the end")


async def test_revoked_session_ends_and_its_tokens_are_void(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """The annotation is the durable wish; Redis only hears of it."""
    session = await active(cluster, rig, "revoked", **NO_BEATS)
    await clients.admit(session, beats=False)
    revoke = {"metadata": {"annotations": {REVOKE_ANNOTATION: "stolen laptop"}}}
    await cluster.patch("sessions", "revoked", revoke)
    revoked = await cluster.read_session("revoked")
    assert revoked is not None

    async with at_work(rig, clients.keep()):
        rig.watch_says(revoked)
        await until(lambda: ended(rig, session, Reason.REVOKED), what="the end")

    assert await clients.beat(session.metadata.uid) != [Answer.OK]


async def test_lifetime_ends_without_redis(cluster: Cluster, rig: ControllerRig) -> None:
    """It counts in etcd."""
    session = await active(cluster, rig, "old", since=timedelta(hours=13), maxLifetimeSeconds=43200)
    await rig.redis.call("FLUSHALL")

    async with at_work(rig):
        await until(lambda: ended(rig, session, Reason.LIFETIME_EXCEEDED), what="the end")


async def test_wiped_redis_ends_nobody_and_is_rebuilt(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """Everybody has a whole threshold again, and the silent still end after it."""
    spec = {"heartbeat": {"periodSeconds": 1, "failureThreshold": 2, "initialDelaySeconds": 0}}
    session = await active(cluster, rig, "wiped", **spec)

    async with at_work(rig, clients.keep()):
        await asyncio.sleep(1.5)
        await rig.redis.call("FLUSHALL")
        await asyncio.sleep(1)
        rebuilt, then = await rig.store.read(session.metadata.uid), state(rig, session)
        await until(lambda: ended(rig, session, Reason.HEARTBEAT_LOST), what="the end")

    assert rebuilt is not None
    assert then == (Phase.ACTIVE, Reason.BOUND)


async def test_new_watch_looks_at_everybody(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """A clock that was moved back may have put the next look an hour off."""
    session = await active(cluster, rig, "far-off", **BEATING)
    await rig.redis.call("ZADD", "gs:deadlines", 2**42, session.metadata.uid)

    async with at_work(rig, clients.keep()):
        await until(lambda: ended(rig, session, Reason.HEARTBEAT_LOST), what="the end")


async def test_client_who_returns_in_its_grace_keeps_its_session(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """PendingDestroy is taken back, and nothing was released."""
    session = await active(cluster, rig, "returns", destroyGraceSeconds=60, **BEATING)
    await clients.admit(session, beats=False)

    async with at_work(rig, clients.keep()):
        await until(
            lambda: state(rig, session) == (Phase.PENDING_DESTROY, Reason.HEARTBEAT_LOST),
            what="the grace",
        )
        answer = await clients.beat(session.metadata.uid)
        await until(lambda: state(rig, session)[0] is Phase.ACTIVE, what="the return")

    assert answer == [Answer.RETURNED]
    assert rig.agent.releases == []


async def test_grace_that_nobody_uses_ends(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """After it a client is refused."""
    session = await active(cluster, rig, "waits", destroyGraceSeconds=1, **BEATING)
    await clients.admit(session, beats=False)

    async with at_work(rig, clients.keep()):
        await until(lambda: ended(rig, session, Reason.HEARTBEAT_LOST), what="the end")

    assert await clients.beat(session.metadata.uid) != [Answer.OK]
    assert len(rig.agent.releases) == 1


async def test_grace_begins_anew_when_redis_was_wiped_in_it(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """No release has begun, so a client may still come back."""
    session = await active(cluster, rig, "again", destroyGraceSeconds=60, **BEATING)

    async with at_work(rig, clients.keep()):
        await until(lambda: state(rig, session)[0] is Phase.PENDING_DESTROY, what="the grace")
        await rig.redis.call("FLUSHALL")
        await asyncio.sleep(2)
        await clients.admit(session, beats=False)
        answer = await clients.beat(session.metadata.uid)
        await until(lambda: state(rig, session)[0] is Phase.ACTIVE, what="the return")

    assert answer == [Answer.RETURNED]


async def test_mass_silence_is_held_and_said(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """Ten of ten at once: the observer may be what is broken."""
    sessions = [await active(cluster, rig, f"mass-{i}", **BEATING) for i in range(10)]

    def held(session: Session) -> bool:
        known = rig.sessions.get(session.metadata.uid)
        return known is not None and holds(known.status, ConditionType.EXPIRY_PAUSED)

    async with at_work(rig, clients.keep()):
        await until(lambda: all(held(one) for one in sessions), what="ExpiryPaused")

    assert {state(rig, one)[0] for one in sessions} == {Phase.ACTIVE}


async def test_observe_mode_tells_and_ends_nobody(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """An Event says what would have been."""
    session = await active(cluster, rig, "observed", **BEATING)
    rig.observed.add(cluster.namespace)

    async with at_work(rig, clients.keep()):
        async with asyncio.timeout(15):
            while "WouldEnd" not in str(await cluster.read("events", "")):
                await asyncio.sleep(0.1)

    assert state(rig, session) == (Phase.ACTIVE, Reason.BOUND)


async def test_observe_mode_is_quiet_after_it_has_told(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """A lifetime that is over is no reason to go round and round."""
    old = timedelta(hours=13)
    session = await active(cluster, rig, "told", since=old, maxLifetimeSeconds=43200)
    rig.observed.add(cluster.namespace)
    before = RECONCILES.labels("retry")._value.get()

    async with at_work(rig, clients.keep()):
        await until(lambda: session.metadata.uid in rig.performer._told, what="the telling")
        await asyncio.sleep(0.5)

    assert RECONCILES.labels("retry")._value.get() == before


async def test_visit_that_fails_keeps_its_suspicion(cluster: Cluster, rig: ControllerRig) -> None:
    """A claim that could not be written is taken back at once, not by the next lease."""
    session = await active(cluster, rig, "stale", **NO_BEATS)
    uid = session.metadata.uid
    await rig.liveness.sweeper.sweep()
    claim = Claim(RecordState.RELEASING, Reason.IDLE, timedelta(), None)
    await rig.records.claim(uid, claim)
    await cluster.patch("sessions", "stale", {"spec": {"ttlSecondsAfterDestroyed": 9}})
    rig.intake.suspect(uid, Priority.HEARTBEAT)
    rig.leader.check = deposed_once(rig.leader.check)  # type: ignore[method-assign]

    async with running(rig.worker.run()):
        await until_active_record(rig, uid)


async def test_claim_whose_answer_is_lost_is_looked_after(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """The record says pending by then, and would not be due before its grace is over."""
    idle = {"timeoutSeconds": 1, "signals": ["Client"]}
    session = await active(cluster, rig, "late", idle=idle, destroyGraceSeconds=600, **NO_BEATS)
    rig.records.claim = late_once(rig.records.claim)  # type: ignore[method-assign]

    async with at_work(rig, clients.keep()):
        await until(lambda: state(rig, session)[0] is Phase.PENDING_DESTROY, what="the claim")


def late_once(claim: ClaimCall) -> ClaimCall:
    """Let the first claim reach Redis when nobody waits for its answer any more."""
    tasks: list[asyncio.Task[Outcome]] = []

    async def later(uid: str, action: Claim) -> Outcome:
        await asyncio.sleep(0.2)
        return await claim(uid, action)

    async def claims(uid: str, action: Claim) -> Outcome:
        if tasks:
            return await claim(uid, action)
        tasks.append(asyncio.create_task(later(uid, action)))
        return Outcome.UNKNOWN

    return claims


def deposed_once(check: Callable[[], None]) -> Callable[[], None]:
    """Let the first effect of a visit fail as a request does that got no answer."""
    failures = [Retry("no answer")]

    def fails() -> None:
        if failures:
            raise failures.pop()
        check()

    return fails


async def until_active_record(rig: ControllerRig, uid: str) -> None:
    """Wait until the record is active again."""
    async with asyncio.timeout(5):
        while (seen := await rig.store.read(uid)) is None or seen.record.state != "active":
            await asyncio.sleep(0.02)


async def test_turn_that_came_to_nothing_comes_again(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """With the lease of its deadline; here because observe mode is over."""
    session = await active(cluster, rig, "unobserved", **BEATING)
    rig.observed.add(cluster.namespace)

    async with at_work(rig, clients.keep()):
        async with asyncio.timeout(15):
            while "WouldEnd" not in str(await cluster.read("events", "")):
                await asyncio.sleep(0.1)
        rig.observed.clear()
        await rig.redis.call("ZADD", "gs:deadlines", 0, session.metadata.uid)
        await until(lambda: ended(rig, session, Reason.HEARTBEAT_LOST), what="the end")


async def test_dead_gateway_leaves_a_fresh_threshold(
    cluster: Cluster, rig: ControllerRig, clients: Clients
) -> None:
    """Its Sessions were heard until it died; another gateway lives on."""
    spec = {"heartbeat": {"periodSeconds": 1, "failureThreshold": 3, "initialDelaySeconds": 0}}
    session = await active(cluster, rig, "orphan", **spec)
    await clients.admit(session, beats=False)
    await clients.registry.announce("g-2", SECOND)
    await clients.store.connect(session.metadata.uid, "digest", "g-2", "1")

    async with at_work(rig, clients.keep()):
        await asyncio.sleep(3.5)
        then = state(rig, session)
        await until(lambda: ended(rig, session, Reason.HEARTBEAT_LOST), what="the end")

    assert then == (Phase.ACTIVE, Reason.BOUND)
