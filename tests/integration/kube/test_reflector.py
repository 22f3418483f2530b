"""Following Pods and Nodes of a real kube-apiserver, and an apiserver that is in trouble."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from tests.support.cluster import Cluster, kube_client, running, until
from tests.support.control_plane import ControlPlane
from tests.support.scripted_apiserver import Answer, ScriptedApiserver

from gpusession.api.cluster import Node, Pod
from gpusession.api.session import USE_LABEL
from gpusession.kube.client import KubeClient
from gpusession.kube.reflector import Reflector

NODES = "/api/v1/nodes"


class Ear:
    """Notes what a reflector tells."""

    def __init__(self, reflector: Reflector[Any]) -> None:
        self.heard: list[tuple[str, bool]] = []
        reflector.listen(lambda found, gone: self.heard.append((found.metadata.name, gone)))

    async def hears(self, name: str, *, gone: bool = False) -> None:
        """Wait for this news."""
        await until(lambda: (name, gone) in self.heard, what=f"{name} in {self.heard}")


def reflector_of_pods(client: KubeClient, cluster: Cluster) -> Reflector[Pod]:
    """Follow the consenting Pods of the namespace."""
    path = f"/api/v1/namespaces/{cluster.namespace}/pods"
    return Reflector(client, path, kind=Pod, selector=USE_LABEL)


async def test_objects_are_listed_and_then_watched(client: KubeClient, cluster: Cluster) -> None:
    """What was there before and what comes later are both told, once each."""
    reflector = reflector_of_pods(client, cluster)
    ear = Ear(reflector)
    before = await cluster.pod("before")

    async with running(reflector.run()):
        await reflector.synced.wait()
        after = await cluster.pod("after")
        await until(lambda: reflector.get(cluster.namespace, "after") == after, what="after")

    assert reflector.get(cluster.namespace, "before") == before
    assert ear.heard.count(("before", False)) == 1


async def test_empty_list_is_a_list(client: KubeClient) -> None:
    """Where nothing is, the reflector knows that it knows everything."""
    reflector = Reflector(client, "/api/v1/namespaces/none/pods", kind=Pod)

    async with running(reflector.run()):
        await until(reflector.synced.is_set, what="the list")

    assert list(reflector) == []


async def test_change_is_told_once(client: KubeClient, cluster: Cluster) -> None:
    """A Pod that ended is told as changed, one time."""
    await cluster.pod("changing")
    reflector = reflector_of_pods(client, cluster)
    async with running(reflector.run()):
        await reflector.synced.wait()
        ear = Ear(reflector)

        await cluster.set_pod_phase("changing", "Succeeded")
        await cluster.pod("change-sentinel")
        await ear.hears("change-sentinel")

    assert ear.heard.count(("changing", False)) == 1


async def test_version_alone_is_no_news(client: KubeClient, cluster: Cluster) -> None:
    """A Node's status is rewritten all the time; that wakes nobody, and a taint does."""
    await cluster.node("beating")
    reflector = Reflector(client, NODES, kind=Node)
    async with running(reflector.run()):
        await reflector.synced.wait()
        ear = Ear(reflector)

        beat = await cluster.patch("nodes", "beating", BEAT, sub="/status")
        await cluster.node("beat-sentinel")
        await ear.hears("beat-sentinel")
        silence = [name for name, _ in ear.heard if name == "beating"]
        version = known_version(reflector, "beating")

        await cluster.patch("nodes", "beating", {"spec": {"taints": [OUT_OF_SERVICE]}})
        await ear.hears("beating")

    assert silence == []
    assert int(version) >= int(beat["metadata"]["resourceVersion"])


BEAT = {"status": {"capacity": {"cpu": "7"}}}
OUT_OF_SERVICE = {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}


def known_version(reflector: Reflector[Node], name: str) -> str:
    """Give the newest version that the reflector has seen of a Node."""
    node = reflector.get("", name)
    assert node is not None
    return node.metadata.resource_version


async def test_deletion_is_told_and_forgotten(client: KubeClient, cluster: Cluster) -> None:
    """A Pod that is gone is told as gone and is no longer found."""
    await cluster.pod("deleted")
    reflector = reflector_of_pods(client, cluster)
    ear = Ear(reflector)

    async with running(reflector.run()):
        await reflector.synced.wait()
        await cluster.remove_pod("deleted")
        await ear.hears("deleted", gone=True)

    assert reflector.get(cluster.namespace, "deleted") is None


async def test_withdrawn_consent_is_told_as_gone(client: KubeClient, cluster: Cluster) -> None:
    """A Pod that loses the label leaves the watch; only the apiserver knows that it lives."""
    await cluster.pod("withdrawn")
    reflector = reflector_of_pods(client, cluster)
    ear = Ear(reflector)

    async with running(reflector.run()):
        await reflector.synced.wait()
        await cluster.patch("pods", "withdrawn", {"metadata": {"labels": {USE_LABEL: None}}})
        await ear.hears("withdrawn", gone=True)

    assert await cluster.read("pods", "withdrawn") is not None


async def test_what_vanished_in_a_gap_is_told(client: KubeClient, cluster: Cluster) -> None:
    """A new list tells of the Pods that went, and of those that changed, while nobody watched."""
    for name in ("gap-gone", "gap-changed", "gap-same"):
        await cluster.pod(name)
    reflector = reflector_of_pods(client, cluster)
    async with running(reflector.run()):
        await reflector.synced.wait()
    await cluster.remove_pod("gap-gone")
    await cluster.set_pod_phase("gap-changed", "Failed")
    ear = Ear(reflector)

    async with running(reflector.run()):
        await ear.hears("gap-changed")

    assert sorted(ear.heard) == [("gap-changed", False), ("gap-gone", True)]


@pytest.fixture(scope="module")
def own_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Give a control plane whose apiserver may die."""
    with ControlPlane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


@pytest.fixture
async def own_cluster(own_plane: ControlPlane) -> AsyncIterator[Cluster]:
    """Give that control plane to an admin."""
    async with kube_client(own_plane.admin_kubeconfig) as admin:
        yield Cluster(admin, "default")


async def test_watch_survives_the_apiserver(own_plane: ControlPlane, own_cluster: Cluster) -> None:
    """After a crash of the apiserver news goes on, and what lives is not told as gone."""
    await own_cluster.node("survivor")
    reflector = Reflector(own_cluster.admin, NODES, kind=Node)
    ear = Ear(reflector)
    async with running(reflector.run()):
        await ear.hears("survivor")

        own_plane.processes["kube-apiserver"].kill()
        own_plane.processes["kube-apiserver"].start()
        await own_cluster.wait_for_apiserver()
        await own_cluster.node("newcomer")
        await ear.hears("newcomer")

    assert ("survivor", True) not in ear.heard
    assert reflector.get("", "survivor") is not None


async def test_real_410_is_an_event_in_the_stream(
    own_plane: ControlPlane, own_cluster: Cluster
) -> None:
    """A restarted apiserver has forgotten old versions: this is how it says so."""
    own_plane.processes["kube-apiserver"].kill()
    own_plane.processes["kube-apiserver"].start()
    await own_cluster.wait_for_apiserver()
    asked = {"watch": "1", "resourceVersion": "2", "timeoutSeconds": "2"}

    lines = [json.loads(line) async for line in own_cluster.admin.follow(NODES, asked)]

    assert [(line["type"], line["object"]["code"]) for line in lines] == [("ERROR", 410)]


def a_list(*names: str, version: str = "7") -> Answer:
    """Write down a list of Nodes."""
    items = [{"metadata": {"name": n, "uid": n, "resourceVersion": version}} for n in names]
    return Answer(body={"metadata": {"resourceVersion": version}, "items": items})


def an_error(code: int) -> Answer:
    """Write down a watch that fails after it was opened."""
    return Answer(lines=[{"type": "ERROR", "object": {"code": code, "message": "as scripted"}}])


SILENCE = Answer(lines=[], open=True)


async def follow(server: ScriptedApiserver, *, requests: int) -> Ear:
    """Follow the Nodes of a scripted apiserver until it was asked so often."""
    async with aiohttp.ClientSession() as session:
        reflector = Reflector(KubeClient(session, server=server.url), NODES, kind=Node)
        ear = Ear(reflector)
        async with running(reflector.run()):
            await until(lambda: len(server.requests) >= requests, what=f"{requests} requests")
    return ear


async def test_410_leads_to_a_new_list() -> None:
    """After a 410 everything is listed again; who is missing there is told as gone."""
    script = (a_list("a", "b"), an_error(410), a_list("b", "c", version="9"), SILENCE)
    async with ScriptedApiserver(*script) as server:
        ear = await follow(server, requests=4)

    assert ear.heard == [("a", False), ("b", False), ("a", True), ("c", False)]
    assert "resourceVersion=9" in server.requests[3]


async def test_bookmark_moves_the_version_on() -> None:
    """A quiet watch that ends goes on from the last bookmark, without a list."""
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "42"}}}
    async with ScriptedApiserver(a_list(), Answer(lines=[bookmark]), SILENCE) as server:
        await follow(server, requests=3)

    assert [("watch=1" in url) for url in server.requests] == [False, True, True]
    assert "resourceVersion=42" in server.requests[2]


@pytest.mark.parametrize(
    "script",
    [
        (a_list(), an_error(500), a_list()),
        (a_list(), Answer(lines=[{"type": 5}]), a_list()),
        (a_list(), Answer(status=429, body={}), a_list()),
        (a_list(), Answer(status=403, body={}), a_list()),
        (a_list(), Answer(lines=[]), SILENCE),
        (Answer(body="<html>a proxy's page</html>"), a_list(), SILENCE),
    ],
    ids=["error-event", "garbled-event", "429", "403", "hangs-up", "garbled-list"],
)
async def test_apiserver_in_trouble_is_not_flooded(script: tuple[Answer, ...]) -> None:
    """Whatever goes wrong, a pause comes before the next request, and nothing ends for good."""
    async with ScriptedApiserver(*script) as server:
        began = asyncio.get_running_loop().time()
        await follow(server, requests=3)

    assert asyncio.get_running_loop().time() - began > 0.9
