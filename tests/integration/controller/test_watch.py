"""How Kopf's watch begins and ends: a leader that hears nothing says so, and does not last."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from tests.support import kubeconfig
from tests.support.cluster import until
from tests.support.controller_rig import ControllerRig, Surroundings
from tests.support.processes import Process, free_port
from tests.support.scripted_apiserver import Answer, ScriptedApiserver
from tests.support.toolchain import REPOSITORY

from gpusession.controller.queue import DestroyQueue
from gpusession.controller.watch import require_opened, watch_sessions
from gpusession.errors import NotWatching
from gpusession.kube.connection import KubeConnection

EMPTY = Answer(
    body={
        "metadata": {"name": "gpusession-controller", "resourceVersion": "1"},
        "spec": {"holderIdentity": ""},
        **{name: [] for name in ("versions", "groups", "resources", "items")},
    }
)
"""Whatever is asked for: a Lease that is free, lists of nothing, discovery of nothing."""


def resource(plural: str, kind: str) -> dict[str, object]:
    """Describe a resource as discovery does."""
    verbs = ["list", "watch", "patch"]
    return {"name": plural, "singularName": "", "kind": kind, "namespaced": False, "verbs": verbs}


def group(name: str, version: str) -> dict[str, object]:
    """Describe a group of one version as discovery does."""
    return {
        "name": name,
        "versions": [{"version": version}],
        "preferredVersion": {"version": version},
    }


CRDS, OURS = group("apiextensions.k8s.io", "v1"), group("gpusession.dev", "v1alpha1")
DEFINITION = resource("customresourcedefinitions", "CustomResourceDefinition")
DISCOVERED = {
    "/api": Answer(body={"versions": ["v1"]}),
    "/api/v1": Answer(body={"resources": [resource("namespaces", "Namespace")]}),
    "/apis": Answer(body={"groups": [CRDS, OURS]}),
    "/apis/apiextensions.k8s.io/v1": Answer(body={"resources": [DEFINITION]}),
    "/apis/gpusession.dev/v1alpha1": Answer(body={"resources": [resource("sessions", "Session")]}),
    "/apis/gpusession.dev/v1alpha1/sessions": Answer(status=404, body={}),
}
"""Discovery names Sessions, which are not served: their CRD has just been deleted."""


class Watching:
    """A watch that runs beside a test."""

    def __init__(self) -> None:
        self.opened, self.stop = asyncio.Event(), asyncio.Event()
        self.task: asyncio.Task[None]


@asynccontextmanager
async def watching(login: Path, rig: ControllerRig) -> AsyncIterator[Watching]:
    """Watch as the controller does, and leave as it does on SIGTERM."""
    connection = KubeConnection(login, timeout=timedelta(seconds=5))
    await connection.load()
    watching = Watching()
    watching.task = asyncio.create_task(
        watch_sessions(
            connection,
            intake=rig.intake,
            queue=DestroyQueue(retry_base=timedelta(seconds=1), retry_cap=timedelta(seconds=1)),
            identity="controller-0",
            opened=watching.opened,
            stop=watching.stop,
            drain_timeout=timedelta(seconds=1),
        )
    )
    yield watching
    watching.stop.set()
    await asyncio.wait({watching.task})


async def test_watch_is_open_once_the_apiserver_has_accepted_it(
    rig: ControllerRig, surroundings: Surroundings
) -> None:
    """Nothing else says so where there is no Session yet."""
    async with watching(surroundings.kubeconfig, rig) as watch:
        await until(watch.opened.is_set, what="the watch")
        await require_opened(watch.opened, within=timedelta(0))

    assert watch.task.exception() is None


async def test_watch_of_what_discovery_does_not_name_is_never_open(
    rig: ControllerRig, tmp_path: Path
) -> None:
    """Kopf looks once and then waits without a word: the leader must not wait with it."""
    async with (
        ScriptedApiserver(EMPTY) as apiserver,
        watching(kubeconfig.for_fake(tmp_path / "kubeconfig", server=apiserver.url), rig) as watch,
    ):
        await until(lambda: "/apis" in apiserver.requests, what="Kopf's look at discovery")
        with pytest.raises(NotWatching, match=r"no watch of Sessions within 0\.3 s"):
            await require_opened(watch.opened, within=timedelta(seconds=0.3))
        assert not watch.task.done()


async def test_end_of_kopf_is_told_with_its_reason(rig: ControllerRig, tmp_path: Path) -> None:
    """Where the CRD goes away under it, the next life waits for another one."""
    async with (
        ScriptedApiserver(EMPTY, at=DISCOVERED) as apiserver,
        watching(kubeconfig.for_fake(tmp_path / "kubeconfig", server=apiserver.url), rig) as watch,
    ):
        with pytest.raises(NotWatching, match="Kopf has ended: APINotFoundError"):
            await watch.task
        assert not watch.opened.is_set()


@pytest.fixture
def metrics_port() -> int:
    """Give the port where a program of the test answers probes."""
    return free_port()


@pytest.fixture
async def unhearing(
    surroundings: Surroundings, metrics_port: int, tmp_path: Path
) -> AsyncIterator[Process]:
    """Give the controller's program at an apiserver whose discovery names no Sessions."""
    async with ScriptedApiserver(EMPTY) as apiserver:
        settings = {
            "KUBECONFIG": kubeconfig.for_fake(tmp_path / "kubeconfig", server=apiserver.url),
            "LISTEN_HOST": "127.0.0.1",
            "METRICS_PORT": metrics_port,
            "REDIS_URL": surroundings.redis_url,
            "AGENT_CA_FILE": surroundings.plane.ca_file,
            "WATCH_OPEN_TIMEOUT": "PT3S",
        }
        environment = {f"GPUSESSION_{name}": str(value) for name, value in settings.items()}
        program = Process(
            [sys.executable, "-m", "gpusession", "controller"],
            log=tmp_path / "controller.log",
            env=os.environ | environment,
            cwd=REPOSITORY / "operator",
        )
        with program:
            yield program


async def test_leader_without_a_watch_is_not_ready_and_ends(
    unhearing: Process, metrics_port: int
) -> None:
    """A rollout waits for it, kubelet starts it again, and its log says why."""
    await until(lambda: unhearing.log_matches("controller started"), what="the leader's start")
    url = f"http://127.0.0.1:{metrics_port}/readyz"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        said = answer.status, await answer.text()
    await until(lambda: not unhearing.running, what="its end")

    assert said == (503, "still listing Pods, Nodes and Sessions\n")
    assert unhearing.exit_code() == 1
    assert unhearing.log_tail(1) == (
        "gpusession controller: Kopf has opened no watch of Sessions within 3 s"
    )
