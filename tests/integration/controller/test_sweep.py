"""The sweep over a real apiserver's list: what the watch has missed costs time, nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.support.builders import make_metadata, make_session, make_status
from tests.support.cluster import Cluster, running, until
from tests.support.controller_rig import ControllerRig
from tests.support.scripted_apiserver import Answer, ScriptedApiserver

from gpusession.api.session import Phase, Session
from gpusession.controller.sweep import Sweep
from gpusession.errors import ApiUnavailable
from gpusession.kube.client import KubeClient


async def test_missed_creation_is_found(cluster: Cluster, rig: ControllerRig) -> None:
    """A Session of which the watch said nothing is known after a sweep and looked at."""
    session = await cluster.session("creation")

    await rig.sweep.sweep()

    assert rig.sessions.get(session.metadata.uid) == session
    assert session.metadata.uid in await rig.waiting_keys()


async def test_missed_change_is_found(cluster: Cluster, rig: ControllerRig) -> None:
    """A close that the watch swallowed ends the Session a sweep later."""
    session = await cluster.session("change")
    rig.watch_says(session)
    await rig.waiting_keys()
    await cluster.patch("sessions", "change", {"spec": {"desiredPhase": "Destroyed"}})

    await rig.sweep.sweep()

    known = rig.sessions.get(session.metadata.uid)
    assert known is not None
    assert known.spec.desired_phase is Phase.DESTROYED
    assert session.metadata.uid in await rig.waiting_keys()


async def test_missed_deletion_is_found(cluster: Cluster, rig: ControllerRig) -> None:
    """A Session that vanished in a gap of the watch is forgotten, its record too."""
    session = await cluster.session("deletion")
    rig.watch_says(session)
    await rig.records.open(session, make_status(Phase.ACTIVE))
    await cluster.delete("sessions", "deletion")

    await rig.sweep.sweep()

    assert session.metadata.uid not in rig.sessions
    assert await rig.store.uids() == set()


async def test_quiet_sweep_wakes_nobody(cluster: Cluster, rig: ControllerRig) -> None:
    """Where list and watch agree there is nothing to do."""
    rig.watch_says(await cluster.session("quiet"))
    await rig.sweep.sweep()
    await rig.waiting_keys()

    await rig.sweep.sweep()

    assert await rig.waiting_keys() == set()


async def test_session_that_comes_during_the_list_is_kept(rig: ControllerRig) -> None:
    """What the watch brings while the list is under way is not taken for deleted."""
    late = make_session(metadata=make_metadata(uid="late"))

    sweeping = asyncio.create_task(rig.sweep.sweep())
    await asyncio.sleep(0)
    rig.watch_says(late)
    await sweeping

    assert "late" in rig.sessions


async def test_buried_stay_buried_until_the_list_is_without_them(
    cluster: Cluster, rig: ControllerRig
) -> None:
    """A list that still shows a Session that our own write has let go brings it not back."""
    session = await cluster.session("buried")
    rig.sessions.bury(session.metadata.uid)

    for _ in range(2):
        await rig.sweep.sweep()

    assert session.metadata.uid not in rig.sessions


async def test_lag_is_noted_after_a_whole_list_without_an_event(
    cluster: Cluster, rig: ControllerRig
) -> None:
    """The list shows a state, a second one still does, and the watch never told it."""
    await cluster.session("lag")

    await rig.sweep.sweep()
    after_one = rig.sweep.behind_since
    await rig.sweep.sweep()
    since = rig.sweep.behind_since
    await rig.sweep.sweep()

    assert after_one is None
    assert since is not None
    assert rig.sweep.behind_since == since


async def test_lag_ends_with_the_event(cluster: Cluster, rig: ControllerRig) -> None:
    """The watch that has caught up is no longer behind."""
    for session in [s async for s in lagging(cluster, rig)]:
        rig.watch_says(session)

    await rig.sweep.sweep()

    assert rig.sweep.behind_since is None


async def lagging(cluster: Cluster, rig: ControllerRig) -> AsyncIterator[Any]:
    """Bring the watch behind; give all Sessions that it has to tell of."""
    await cluster.session("catches-up")
    await rig.sweep.sweep()
    await rig.sweep.sweep()
    assert rig.sweep.behind_since is not None
    for session in rig.sessions:
        yield session


async def test_own_write_whose_event_comes_soon_is_no_lag(
    cluster: Cluster, rig: ControllerRig
) -> None:
    """The cache is ahead of the watch after each write of ours; one event later all is well."""
    await rig.sweep.sweep()
    for known in rig.sessions:
        rig.watch_says(known)
    session = await cluster.session("own-write")
    rig.sessions.keep(session)  # as the answer to our own write

    sweeping = asyncio.create_task(rig.sweep.sweep())
    await asyncio.sleep(0)
    rig.watch_says(session)
    await sweeping

    assert rig.sweep.behind_since is None


async def test_own_write_during_the_list_is_no_lag(cluster: Cluster, rig: ControllerRig) -> None:
    """What was not ahead before the list is no proof after it: its event is on the way."""
    session = await cluster.session("written-meanwhile")
    await rig.sweep.sweep()
    for known in rig.sessions:
        rig.watch_says(known)
    close = {"spec": {"desiredPhase": "Destroyed"}}
    written = msgspec.convert(
        await cluster.patch("sessions", session.metadata.name, close), Session
    )

    sweeping = asyncio.create_task(rig.sweep.sweep())
    await asyncio.sleep(0)
    rig.sessions.keep(written)  # as the answer to our own write
    await sweeping

    assert rig.sweep.behind_since is None


async def test_lost_record_is_made_good(cluster: Cluster, rig: ControllerRig) -> None:
    """An Active Session whose record Redis lost has one again after the sweep."""
    session = await cluster.session("lost-record")
    await rig.performer._writer.record_status(session.metadata, make_status(Phase.ACTIVE))

    await rig.sweep.sweep()

    assert session.metadata.uid in await rig.store.uids()


@asynccontextmanager
async def scripted(rig: ControllerRig, *answers: Answer, **changed: Any) -> AsyncIterator[Sweep]:
    """Give a sweep over the lists of a scripted apiserver."""
    async with ScriptedApiserver(*answers) as server, aiohttp.ClientSession() as session:
        yield rig.make_sweep(KubeClient(session, server=server.url), **changed)


def a_list(*sessions: Any) -> Answer:
    """Write down a list of Sessions."""
    return Answer(body={"metadata": {}, "items": [msgspec.to_builtins(s) for s in sessions]})


GARBLED = {"metadata": {"name": "odd", "namespace": "lab", "uid": "odd"}, "spec": {"podRefs": 5}}


async def test_unreadable_session_stops_nothing(rig: ControllerRig) -> None:
    """One Session of a newer CRD is left out; the sweep goes on and its record stays."""
    await rig.records.open(make_session(metadata=make_metadata(uid="odd")), make_status())
    async with scripted(rig, a_list(GARBLED, make_session(Phase.ACTIVE))) as sweep:
        await sweep.sweep()

    assert [s.metadata.uid for s in rig.sessions] == ["s-1"]
    assert await rig.store.uids() == {"odd", "s-1"}


async def test_list_that_breaks_off_deletes_nothing(rig: ControllerRig) -> None:
    """A missing page is no proof: only a whole list may show that a Session is gone."""
    rig.watch_says(make_session(Phase.ACTIVE))
    page = Answer(body={"metadata": {"continue": "more"}, "items": []})
    async with scripted(rig, page, Answer(status=503, body={})) as sweep:
        with pytest.raises(ApiUnavailable):
            await sweep.sweep()

    assert "s-1" in rig.sessions


@pytest.mark.parametrize("trouble", [410, 403, 503, 200], ids=str)
async def test_sweeping_goes_on_after_trouble(rig: ControllerRig, trouble: int) -> None:
    """An expired page, a missing right, an outage, a proxy's page: the next sweep may work."""
    answers = (Answer(status=trouble, body="no list"), a_list(make_session(Phase.ACTIVE)))
    async with scripted(rig, *answers) as sweep, running(sweep.run()):
        await until(lambda: "s-1" in rig.sessions, what="the second list")


async def test_active_sessions_are_bound_again_now_and_then(rig: ControllerRig) -> None:
    """Every so many sweeps the bind is repeated, for Active Sessions and no others."""
    pending = make_session(Phase.PENDING, metadata=make_metadata(uid="pending"))
    every = {"rebind_period": timedelta(milliseconds=40)}
    lists = a_list(make_session(Phase.ACTIVE), pending)
    async with scripted(rig, lists, **every) as sweep, running(sweep.run()):
        await until(lambda: len(rig.rebound) > 1, what="two rebinds")

    assert set(rig.rebound) == {"s-1"}
