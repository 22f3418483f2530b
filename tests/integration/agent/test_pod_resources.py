"""The client of kubelet's PodResources API against a server that is a program of its own."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from tests.support.processes import Process, wait_until
from tests.support.toolchain import REPOSITORY

from gpusession.agent.pod_resources import PodResources, Unseen

GPU = "GPU-5a2c0000-0000-4000-8000-000000000000"
PODS = {
    "default/trainer": {"nvidia.com/gpu": [f"{GPU}::1", f"{GPU}::2"]},
    "default/web": {},
}


class Kubelet:
    """The server's program and where it listens."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "kubelet.sock"
        self._pods = folder / "pods.json"
        self._log = folder / "kubelet.log"
        self._pods.write_text(json.dumps(PODS))

    def start(self, get: str = "served") -> None:
        """Start it and wait until it listens."""
        self._log.write_text("")
        program = [sys.executable, "-m", "tests.support.pod_resources_server"]
        argv = [*program, str(self.socket), str(self._pods), f"--get={get}"]
        self.process = Process(argv, log=self._log, cwd=REPOSITORY)
        self.process.start()
        wait_until(
            lambda: self.process.log_matches("ready"),
            timeout=15,
            what="the server to listen",
            processes=[self.process],
        )


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    """Give a kubelet that serves."""
    kubelet = Kubelet(tmp_path)
    kubelet.start()
    try:
        yield kubelet
    finally:
        kubelet.process.kill()


@pytest.fixture
def resources(kubelet: Kubelet) -> PodResources:
    """Give the client, patient with a busy machine."""
    return PodResources(kubelet.socket, timeout=timedelta(seconds=5))


def _count(result: str) -> float:
    return REGISTRY.get_sample_value("gpusession_pod_resources_total", {"result": result}) or 0


async def test_kubelet_tells_which_gpu_a_pod_has(resources: PodResources) -> None:
    """Two replicas of one GPU are one GPU."""
    assert await resources.gpus_of("default", "trainer") == (GPU,)


async def test_a_pod_without_a_gpu_has_none(resources: PodResources) -> None:
    """Kubelet knows it, and has given it nothing."""
    assert await resources.gpus_of("default", "web") == ()


async def test_a_pod_that_kubelet_does_not_know_is_unseen(resources: PodResources) -> None:
    """Neither Get nor List finds it."""
    assert isinstance(await resources.gpus_of("default", "stranger"), Unseen)


@pytest.mark.parametrize("get", ["unimplemented", "disabled"])
async def test_a_kubelet_without_get_is_asked_for_its_list(
    kubelet: Kubelet, resources: PodResources, get: str
) -> None:
    """Old kubelets do not have it, or have it behind a gate."""
    kubelet.process.kill()
    kubelet.start(get)

    assert await resources.gpus_of("default", "trainer") == (GPU,)


async def test_a_missing_kubelet_is_unseen_at_once(
    kubelet: Kubelet, resources: PodResources
) -> None:
    """Nobody listens, with the socket's file still there or not."""
    kubelet.process.kill()
    began_at = time.monotonic()

    refused = await resources.gpus_of("default", "trainer")
    kubelet.socket.unlink(missing_ok=True)
    missing = await resources.gpus_of("default", "trainer")

    assert isinstance(refused, Unseen)
    assert isinstance(missing, Unseen)
    assert time.monotonic() - began_at < 4


async def test_a_restarted_kubelet_is_seen_by_the_next_question(
    kubelet: Kubelet, resources: PodResources
) -> None:
    """However often it was asked while it was away: no question waits for another one's backoff."""
    kubelet.process.kill()
    for _ in range(20):
        await resources.gpus_of("default", "trainer")
    kubelet.start()
    impatient = PodResources(kubelet.socket, timeout=timedelta(seconds=1))

    assert await resources.gpus_of("default", "trainer") == (GPU,)
    assert await impatient.gpus_of("default", "trainer") == (GPU,)


async def test_a_hanging_kubelet_costs_the_timeout_and_no_more(kubelet: Kubelet) -> None:
    """It accepts, and answers nothing."""
    impatient = PodResources(kubelet.socket, timeout=timedelta(milliseconds=200))
    kubelet.process.pause()
    async with asyncio.timeout(3):
        found = await impatient.gpus_of("default", "trainer")
    kubelet.process.resume()

    assert isinstance(found, Unseen)
    assert "no answer within" in found.detail


async def test_many_questions_at_once_are_all_answered(resources: PodResources) -> None:
    """A node's Sessions may all be bound in the same moment."""
    questions = (resources.gpus_of("default", "trainer") for _ in range(50))

    assert set(await asyncio.gather(*questions)) == {(GPU,)}


@pytest.mark.parametrize(
    ("name", "result"), [("trainer", "get"), ("web", "none"), ("stranger", "unseen")]
)
async def test_each_result_is_counted(resources: PodResources, name: str, result: str) -> None:
    """What people see of it."""
    before = _count(result)

    await resources.gpus_of("default", name)

    assert _count(result) == before + 1
