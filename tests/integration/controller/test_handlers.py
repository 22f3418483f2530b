"""Kopf's one handler, with events made by hand and with Kopf at a real apiserver."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import kopf
import msgspec
import pytest
from tests.support.audit_log import MutatingRequest
from tests.support.builders import make_session
from tests.support.cluster import Cluster, until
from tests.support.control_plane import ControlPlane
from tests.support.controller_rig import ControllerRig, Surroundings
from tests.support.session_api import CONTROLLER

from gpusession.api.session import FINALIZER, Phase
from gpusession.controller.handlers import build_registry, build_settings
from gpusession.kube.connection import KubeConnection


async def no_login() -> kopf.AiohttpSession:
    """Stand in where nobody logs in."""
    raise AssertionError


async def event(rig: ControllerRig, kind: str | None, body: Any) -> None:
    """Give the handler an event as Kopf does."""
    registry = build_registry(rig.intake, no_login)
    (handler,) = registry._watching.get_all_handlers()
    await handler.fn(event={"type": kind, "object": body}, body=body)


@pytest.mark.parametrize("kind", [None, "ADDED", "MODIFIED"])
async def test_event_makes_the_session_known_and_its_key_ready(
    rig: ControllerRig, kind: str | None
) -> None:
    """Whether listed, added or changed: the state is kept and a worker will look."""
    session = make_session(Phase.ACTIVE)

    await event(rig, kind, msgspec.to_builtins(session))

    assert rig.sessions.get("s-1") == session
    assert not rig.sessions.is_ahead_of_watch("s-1")
    assert await rig.waiting_keys() == {"s-1"}


async def test_deletion_forgets_the_session(rig: ControllerRig) -> None:
    """What is gone is gone, and no worker need look."""
    body = msgspec.to_builtins(make_session(Phase.ACTIVE))
    await event(rig, "ADDED", body)
    await rig.waiting_keys()

    await event(rig, "DELETED", body)

    assert "s-1" not in rig.sessions
    assert await rig.waiting_keys() == set()


@pytest.mark.parametrize("kind", ["ADDED", "DELETED"])
@pytest.mark.parametrize(
    "body",
    [{}, {"metadata": {"name": "odd"}}, {"metadata": 5, "spec": {}}],
    ids=["empty", "no-uid", "another-shape"],
)
async def test_garbled_event_is_left_out(rig: ControllerRig, kind: str, body: Any) -> None:
    """A Session that cannot be read is logged, and the watch goes on."""
    await event(rig, kind, body)

    assert len(rig.sessions) == 0


def test_our_finalizer_is_not_kopfs() -> None:
    """Kopf removes its own finalizer where no handler needs it: it must not be ours."""
    assert build_settings().persistence.finalizer != FINALIZER


@asynccontextmanager
async def kopf_running(rig: ControllerRig, around: Surroundings) -> AsyncIterator[None]:
    """Run Kopf with our registry and settings, as the controller's ServiceAccount."""
    connection = KubeConnection(around.kubeconfig, timeout=timedelta(seconds=5))
    await connection.load()

    async def log_in() -> kopf.AiohttpSession:
        session = connection.session(connections=4)
        return kopf.AiohttpSession(server=connection.server, aiohttp_session=session)

    stop = asyncio.Event()
    operator = asyncio.create_task(
        kopf.operator(
            registry=build_registry(rig.intake, log_in),
            settings=build_settings(),
            standalone=True,
            clusterwide=True,
            stop_flag=stop,
        )
    )
    yield
    stop.set()
    await operator


def writes_of_ours(plane: ControlPlane, namespace: str) -> list[MutatingRequest]:
    """Give what the controller's ServiceAccount has written in this namespace."""
    found = (w for w in plane.mutating_requests() if w.namespace == namespace)
    return [write for write in found if write.user == CONTROLLER]


async def test_kopf_itself_writes_nothing(
    cluster: Cluster, rig: ControllerRig, surroundings: Surroundings
) -> None:
    """Through a whole life, listed and watched, Kopf sends no write and adds nothing."""
    listed = await cluster.session("listed", finalizers=(FINALIZER,))
    async with kopf_running(rig, surroundings):
        await until(lambda: listed.metadata.uid in rig.sessions, what="the list")
        watched = await cluster.session("watched")
        await until(lambda: watched.metadata.uid in rig.sessions, what="the watch")
        await cluster.patch("sessions", "watched", {"spec": {"desiredPhase": "Destroyed"}})
        await until(lambda: is_closed(rig, watched.metadata.uid), what="the change")
        await cluster.delete("sessions", "watched")
        await until(lambda: watched.metadata.uid not in rig.sessions, what="the deletion")

    assert await cluster.read_session("listed") == listed
    assert writes_of_ours(surroundings.plane, cluster.namespace) == []


def is_closed(rig: ControllerRig, uid: str) -> bool:
    """Whether the close has come in."""
    session = rig.sessions.get(uid)
    return session is not None and session.spec.desired_phase is Phase.DESTROYED
