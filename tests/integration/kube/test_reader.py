"""Look-ups in a real kube-apiserver, with the rights of controller and agent."""

from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from tests.support.cluster import Cluster
from tests.support.scripted_apiserver import Answer, ScriptedApiserver

from gpusession.api.session import Session
from gpusession.errors import ApiUnavailable
from gpusession.kube.client import KubeClient
from gpusession.kube.reader import KubeReader


@pytest.fixture
def reader(client: KubeClient) -> KubeReader:
    """Give a reader with the controller's rights."""
    return KubeReader(client)


async def test_pod_is_read_as_the_rules_need_it(cluster: Cluster, reader: KubeReader) -> None:
    """Uid, consent, node and phase come from etcd."""
    made = await cluster.pod("pod")

    pod = await reader.pod(cluster.namespace, "pod")

    assert pod == made
    assert (pod.use, pod.spec.node_name, pod.status.phase) == ("exclusive", "nowhere", "Running")


async def test_terminating_pod_shows_its_grace(cluster: Cluster, reader: KubeReader) -> None:
    """Whoever deleted it, the end and its grace can be read off the Pod."""
    await cluster.pod("ending")
    await cluster.delete("pods", "ending", gracePeriodSeconds=40)

    pod = await reader.pod(cluster.namespace, "ending")

    assert pod is not None
    assert pod.metadata.deletion_grace_period_seconds == 40
    assert pod.metadata.deletion_timestamp is not None


async def test_node_is_read_with_its_taints(cluster: Cluster, reader: KubeReader) -> None:
    """A taint that a human set is seen."""
    await cluster.node("reader-node")
    taint = {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}
    await cluster.patch("nodes", "reader-node", {"spec": {"taints": [taint]}})

    node = await reader.node("reader-node")

    assert node is not None
    assert taint["key"] in [taint.key for taint in node.spec.taints]


async def test_what_does_not_exist_is_none(cluster: Cluster, reader: KubeReader) -> None:
    """Pod, Node and Session: the apiserver's own not-found, and nothing else, is None."""
    here = cluster.namespace

    found = [
        await reader.pod(here, "no"),
        await reader.node("no"),
        await reader.session(here, "no"),
    ]

    assert found == [None, None, None]


@pytest.mark.parametrize("page", [1, 2, 500])
async def test_sessions_come_page_by_page(cluster: Cluster, client: KubeClient, page: int) -> None:
    """Each Session of the cluster comes once, however small the pages are."""
    names = {f"page-{page}-{number}" for number in range(5)}
    for name in names:
        await cluster.session(name)

    found = [msgspec.json.decode(raw, type=Session) async for raw in _listed(client, page)]

    assert sorted(s.metadata.name for s in found if s.metadata.name in names) == sorted(names)
    assert len({s.metadata.uid for s in found}) == len(found)


def _listed(client: KubeClient, page: int) -> AsyncIterator[msgspec.Raw]:
    return KubeReader(client, page=page).sessions()


async def test_pages_are_asked_for_one_after_the_other() -> None:
    """The apiserver's token leads from a page to the next, and its absence ends the list."""
    first = Answer(body={"metadata": {"continue": "more"}, "items": [{"number": 1}]})
    last = Answer(body={"metadata": {}, "items": [{"number": 2}]})
    async with ScriptedApiserver(first, last) as server, aiohttp.ClientSession() as session:
        client = KubeClient(session, server=server.url)

        found = [bytes(raw) async for raw in _listed(client, 1)]

    assert found == [b'{"number": 1}', b'{"number": 2}']
    assert [url.partition("?")[2] for url in server.requests] == [
        "limit=1",
        "limit=1&continue=more",
    ]


async def test_list_without_the_crd_is_unavailable_not_empty() -> None:
    """A resource that is not served says nothing about Sessions: never take it for none."""
    missing = Answer(status=404, body={"message": "the server could not find the resource"})
    async with ScriptedApiserver(missing) as server, aiohttp.ClientSession() as session:
        with pytest.raises(ApiUnavailable, match="apply crds/"):
            [_ async for _ in _listed(KubeClient(session, server=server.url), 1)]
