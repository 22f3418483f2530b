"""What kubelet and Prometheus read over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from aiohttp.test_utils import TestClient, TestServer
from tests.support.cluster import Cluster
from tests.support.controller_rig import ControllerRig

from gpusession.controller.health import Health

AT_ONCE = timedelta(0)
NEVER = timedelta(hours=1)


@asynccontextmanager
async def probed(
    rig: ControllerRig, *synced: asyncio.Event, stale_after: timedelta = NEVER
) -> AsyncIterator[TestClient]:  # type: ignore[type-arg]
    """Serve the health of the rig's sweep over HTTP."""
    health = Health(stale_after=stale_after)
    health.reign(rig.sweep, synced=synced)
    async with TestClient(TestServer(health.application())) as client:
        yield client


async def ask(client: TestClient, path: str) -> tuple[int, str]:  # type: ignore[type-arg]
    """Give status and text."""
    response = await client.get(path)
    return response.status, await response.text()


async def test_fresh_controller_is_alive(rig: ControllerRig) -> None:
    """Before the first sweep nothing is behind."""
    async with probed(rig, stale_after=AT_ONCE) as client:
        assert await ask(client, "/healthz") == (200, "ok, watch behind for 0 s\n")


async def test_watch_that_is_behind_for_long_fails_the_probe(
    cluster: Cluster, rig: ControllerRig
) -> None:
    """Kubelet restarts a controller whose watch is dead, and the text says why."""
    await cluster.session("unwatched")
    for _ in range(2):
        await rig.sweep.sweep()

    async with probed(rig, stale_after=AT_ONCE) as client:
        assert await ask(client, "/healthz") == (503, "the watch is 0 s behind the list\n")


async def test_watch_that_is_behind_for_a_moment_is_alive(
    cluster: Cluster, rig: ControllerRig
) -> None:
    """A lag shorter than the limit restarts nothing."""
    await cluster.session("late")
    for _ in range(2):
        await rig.sweep.sweep()

    async with probed(rig, stale_after=NEVER) as client:
        assert (await ask(client, "/healthz"))[0] == 200


async def test_controller_is_ready_once_everything_is_listed(rig: ControllerRig) -> None:
    """With one list still missing it is not ready; with all it is."""
    pods, nodes = asyncio.Event(), asyncio.Event()
    pods.set()
    async with probed(rig, pods, nodes) as client:
        before = await ask(client, "/readyz")
        nodes.set()
        after = await ask(client, "/readyz")

    assert before == (503, "still listing Pods, Nodes and Sessions\n")
    assert after == (200, "ok\n")


async def test_metrics_are_in_the_text_format(rig: ControllerRig) -> None:
    """Prometheus finds our metrics, with the phases that the sweep has counted."""
    await rig.sweep.sweep()

    async with probed(rig) as client:
        response = await client.get("/metrics")
        text = await response.text()

    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert 'gpusession_sessions{phase="Active"}' in text


async def test_stand_by_is_alive_and_ready() -> None:
    """A rollout waits for the second replica too, which has nothing to list."""
    health = Health(stale_after=AT_ONCE)
    async with TestClient(TestServer(health.application())) as client:
        assert await ask(client, "/readyz") == (200, "ok, standing by\n")
        assert (await ask(client, "/healthz"))[0] == 200
