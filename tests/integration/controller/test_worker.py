"""A worker on a real apiserver: through a whole life, and through what goes wrong in it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.support.audit_log import MutatingRequest
from tests.support.builders import (
    make_bind,
    make_metadata,
    make_pod,
    make_release,
    make_session,
    make_status,
)
from tests.support.cluster import Cluster, running, until
from tests.support.control_plane import ControlPlane
from tests.support.controller_rig import ControllerRig, utc_now
from tests.support.scripted_apiserver import Answer, ScriptedApiserver

from gpusession.api.session import FINALIZER, Phase, Reason, Session
from gpusession.controller.worker import ROUNDS
from gpusession.errors import Stale
from gpusession.kube.client import KubeClient
from gpusession.kube.writer import KubeWriter
from gpusession.metrics import RECONCILES
from gpusession.rules.conditions import timestamp


class Visits:
    """Counts how visits end, from here on."""

    def __init__(self) -> None:
        self._before = {result: self._total(result) for result in RESULTS}

    def __getitem__(self, result: str) -> float:
        return self._total(result) - self._before[result]

    @staticmethod
    def _total(result: str) -> float:
        return RECONCILES.labels(result)._value.get()


RESULTS = ("gone", "waiting", "settled", "stale", "retry", "refused", "defect")


@asynccontextmanager
async def at_work(rig: ControllerRig, *sessions: Session) -> AsyncIterator[Visits]:
    """Have two workers work on what the watch says."""
    visits = Visits()
    for session in sessions:
        rig.watch_says(session)
    async with running(rig.worker.run(), rig.worker.run()):
        yield visits


def known(rig: ControllerRig, session: Session) -> Session | None:
    """Give the newest state that the controller knows."""
    return rig.sessions.get(session.metadata.uid)


def is_in(rig: ControllerRig, session: Session, phase: Phase) -> bool:
    """Whether the controller has brought a Session into this phase."""
    now = known(rig, session)
    return now is not None and now.status.phase is phase


async def active(cluster: Cluster, rig: ControllerRig, name: str, **status: Any) -> Session:
    """Give a Session that is held, Active on its living Pod, and read back."""
    pod = await cluster.pod(name)
    session = await cluster.session(name, finalizers=(FINALIZER,))
    fields = {"pod_uid": pod.metadata.uid, "node_name": "nowhere", "node_uid": None} | status
    since = timestamp(utc_now())  # the lifetime counts from here
    bound = msgspec.structs.replace(make_status(Phase.ACTIVE), active_since=since)
    wanted = msgspec.structs.replace(bound, **fields)
    return await KubeWriter(rig.client).record_status(session.metadata, wanted)


async def test_session_becomes_active(cluster: Cluster, rig: ControllerRig) -> None:
    """From first sight: finalizer and intent, bind, Active with its record in Redis."""
    with suppress(Stale):  # it belongs to no namespace, and another module may have made it
        await cluster.node("nowhere")
    rig.agent.bind_report = make_bind()
    pod = await cluster.pod("begins")
    session = await cluster.session("begins")

    async with at_work(rig, session):
        await until(lambda: is_in(rig, session, Phase.ACTIVE), what="Active")
        await until(lambda: known(rig, session) is not None, what="settled")

    stored = await cluster.read_session("begins")
    assert stored is not None
    assert stored == known(rig, session)
    assert stored.metadata.bind_intent == f"nowhere/{pod.metadata.uid}"
    assert stored.status.pod_uid == pod.metadata.uid


async def test_deleted_session_goes_on_evidence(cluster: Cluster, rig: ControllerRig) -> None:
    """A deletion leads to the Pod's end, the release, one Event, and the object's end."""
    rig.agent.release_report = make_release()
    session = await active(cluster, rig, "ends", node_name="nowhere")
    await rig.records.open(session, session.status)
    await cluster.delete("sessions", "ends")
    deleted = await cluster.read_session("ends")
    assert deleted is not None

    async with at_work(rig, deleted):
        await until(lambda: deleted.metadata.uid not in rig.sessions, what="the end")

    assert await cluster.read("sessions", "ends") is None
    assert await rig.store.uids() == set()
    assert [order.session_uid for order in rig.agent.releases] == [session.metadata.uid]


async def test_session_without_evidence_stays(cluster: Cluster, rig: ControllerRig) -> None:
    """An agent that gives no answer is asked again and again, and the Session waits."""
    session = await active(cluster, rig, "waits")
    await cluster.patch("sessions", "waits", {"spec": {"desiredPhase": "Destroyed"}})
    closed = await cluster.read_session("waits")
    assert closed is not None

    async with at_work(rig, closed):
        await until(lambda: len(rig.agent.releases) > 2, what="three tries")

    assert is_in(rig, session, Phase.PENDING_DESTROY)
    assert FINALIZER in ((await cluster.read_session("waits")) or closed).metadata.finalizers


async def test_stale_look_is_refreshed_and_tried_again(
    cluster: Cluster, rig: ControllerRig
) -> None:
    """A write that was held to an old version is made again on the new one."""
    await cluster.pod("stale")
    old = await cluster.session("stale")
    await cluster.patch("sessions", "stale", {"metadata": {"finalizers": ["a.example/one"]}})

    async with at_work(rig, old) as visits:
        await until(lambda: visits["stale"] == 1, what="the refusal")
        await until(lambda: visits["waiting"] >= 1, what="the second visit")

    stored = await cluster.read_session("stale")
    assert stored is not None
    assert stored.metadata.finalizers == ("a.example/one", FINALIZER)


@pytest.mark.parametrize("is_replaced", [True, False], ids=["namesake", "gone"])
async def test_session_that_is_gone_is_dropped(
    cluster: Cluster, rig: ControllerRig, *, is_replaced: bool
) -> None:
    """The refusal shows that this Session is no more; a namesake is another matter."""
    name = f"dropped-{is_replaced}".lower()
    await cluster.pod(name)
    old = await cluster.session(name)
    await cluster.delete("sessions", name)
    namesake = await cluster.session(name) if is_replaced else None

    async with at_work(rig, old):
        await until(lambda: old.metadata.uid not in rig.sessions, what="the end of it")

    assert await cluster.read_session(name) == namesake


async def test_stale_without_news_waits_its_pause(cluster: Cluster, rig: ControllerRig) -> None:
    """Where the apiserver shows nothing newer, the next try comes after a pause, not at once."""
    await cluster.pod("no-news")
    session = await cluster.session("no-news")
    odd = msgspec.structs.replace(session.metadata, finalizers=("a.example/never",))

    async with at_work(rig, msgspec.structs.replace(session, metadata=odd)) as visits:
        await until(lambda: visits["stale"] >= 3, what="three refusals")

    assert rig.queue._failures[session.metadata.uid] >= 3


async def test_refused_write_is_tried_again_after_a_pause(
    cluster: Cluster, rig: ControllerRig
) -> None:
    """A refusal is never given up on: once the reason is gone, the write goes through."""
    current = await active(cluster, rig, "refused", leader_epoch=10_000)
    status = msgspec.structs.replace(current.status, leader_epoch=0)
    metadata = msgspec.structs.replace(current.metadata, resource_version="1", generation=9)
    deposed = msgspec.structs.replace(current, metadata=metadata, status=status)

    async with at_work(rig, deposed) as visits:
        await until(lambda: visits["refused"] >= 2, what="two refusals")
        rig.sessions.keep(current)  # no key is made ready: only the pause brings it back
        await until(lambda: visits["settled"] == 1, what="a visit that settles it")

    assert await cluster.read_session("refused") == known(rig, current)


async def test_defect_is_logged_and_tried_again(cluster: Cluster, rig: ControllerRig) -> None:
    """A bug in one visit ends neither the worker nor the Session."""
    answers = iter([ZeroDivisionError("as scripted"), None])
    rig.clock = lambda: raised_or_now(next(answers, None))
    session = await active(cluster, rig, "defect")

    async with at_work(rig, session) as visits:
        await until(lambda: visits["settled"] == 1, what="the second visit")

    assert visits["defect"] == 1


def raised_or_now(error: Exception | None) -> datetime:
    """Give the time, or fail."""
    if error is not None:
        raise error
    return utc_now()


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (Answer(status=403, body={"message": "no right"}), "refused"),
        (Answer(status=503, body={}), "retry"),
        (Answer(body={"metadata": 5}), "defect"),
    ],
    ids=["no-right", "outage", "unreadable"],
)
async def test_trouble_at_the_second_look_ends_no_worker(
    rig: ControllerRig, answer: Answer, result: str
) -> None:
    """Whatever happens when a stale object is read again, the key comes back."""
    gone = make_session(metadata=make_metadata(held=False, intent=None, namespace="nowhere"))
    async with ScriptedApiserver(A_POD, answer) as server, aiohttp.ClientSession() as session:
        rig.worker = rig.make_worker(KubeClient(session, server=server.url))
        async with at_work(rig, gone) as visits:
            await until(lambda: visits[result] >= 1, what=f"a visit that ends as {result}")
            await until(lambda: len(server.requests) > 2, what="the next visit")


A_POD = Answer(body=msgspec.to_builtins(make_pod()))


async def test_decisions_of_one_visit_are_bounded(
    session_api: ControlPlane, cluster: Cluster, rig: ControllerRig
) -> None:
    """A state that never moves on costs so many writes per visit, then a pause."""
    rig.queue._retry_base = rig.queue._retry_cap = timedelta(hours=1)
    session = await active(cluster, rig, "endless")
    await cluster.patch("sessions", "endless", {"spec": {"desiredPhase": "Destroyed"}})
    closed = await cluster.read_session("endless")
    assert closed is not None
    stuck = msgspec.structs.replace(closed.metadata, resource_version="9" * 18)

    async with at_work(rig, msgspec.structs.replace(closed, metadata=stuck)) as visits:
        await until(lambda: visits["retry"] == 1, what="the end of the visit")

    assert len(status_writes(session_api, session)) == ROUNDS + 1  # the first made it Active


def status_writes(plane: ControlPlane, session: Session) -> list[MutatingRequest]:
    """Give the writes to the status of a Session, as the apiserver logged them."""
    where = ("sessions", "status", session.metadata.namespace, session.metadata.name)
    return [w for w in plane.mutating_requests() if w[2:6] == where]


async def test_rebind_repeats_the_bind_once(cluster: Cluster, rig: ControllerRig) -> None:
    """An Active Session is bound again when it is due, which heals a ledger that was lost."""
    session = await active(cluster, rig, "rebound")
    rig.agent.bind_report = make_bind(gpu_uuids=("GPU-9",))

    async with at_work(rig, session):
        rig.worker.rebind(session.metadata.uid)
        await until(lambda: rig.agent.binds, what="the bind")
        await until(lambda: "GPU-9" in seen_gpus(rig, session), what="the new GPU")

    assert len(rig.agent.binds) == 1


def seen_gpus(rig: ControllerRig, session: Session) -> tuple[str, ...]:
    """Give the GPUs of a Session as the controller knows them."""
    now = known(rig, session)
    return () if now is None else now.status.gpu_uuids


async def test_waiting_session_says_what_for(cluster: Cluster, rig: ControllerRig) -> None:
    """A Session without a Pod is Pending, with the reason, once it is no longer young."""
    rig.clock = lambda: utc_now() + timedelta(minutes=1)
    session = await cluster.session("no-pod")

    async with at_work(rig, session):
        await until(lambda: is_in(rig, session, Phase.PENDING), what="Pending")

    stored = await cluster.read_session("no-pod")
    assert stored is not None
    assert stored.status.reason == Reason.POD_NOT_FOUND
