"""What the answers of a real kube-apiserver mean to the caller."""

import json
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.cluster import MERGE_PATCH, Cluster, kube_client, paused
from tests.support.control_plane import ControlPlane
from tests.support.processes import free_port
from tests.support.scripted_apiserver import Answer, ScriptedApiserver

from gpusession.errors import ApiUnavailable, Refused, Stale
from gpusession.kube.client import JSON_PATCH, KubeClient

PODS = "/api/v1/namespaces/kube-test-client/pods"
SESSIONS = "/apis/gpusession.dev/v1alpha1/namespaces/kube-test-client/sessions"


async def test_missing_object_is_none(client: KubeClient) -> None:
    """Not found is an answer, and the only one that is None."""
    assert await client.get(f"{PODS}/missing") is None


async def test_found_object_comes_as_json(client: KubeClient, cluster: Cluster) -> None:
    """What is there comes back as the apiserver has it."""
    await cluster.pod("found")

    body = await client.get(f"{PODS}/found")

    assert json.loads(body or b"")["metadata"]["name"] == "found"


async def test_write_to_a_missing_object_is_stale(client: KubeClient) -> None:
    """Who writes to what is gone must look again."""
    change = {"spec": {"desiredPhase": "Destroyed"}}

    with pytest.raises(Stale, match="not found"):
        await client.send("PATCH", f"{SESSIONS}/gone", body=change, content_type=MERGE_PATCH)


async def test_conflict_is_stale(client: KubeClient, cluster: Cluster) -> None:
    """A version that has passed is a 409: look again."""
    await cluster.session("conflict")
    change = {"metadata": {"resourceVersion": "1", "labels": {"a": "b"}}}

    with pytest.raises(Stale, match="409"):
        await client.send("PATCH", f"{SESSIONS}/conflict", body=change, content_type=MERGE_PATCH)


async def test_failed_test_of_a_json_patch_is_stale(client: KubeClient, cluster: Cluster) -> None:
    """The apiserver reports it as 422, and it means what a 409 means."""
    await cluster.session("patched")
    patch = [{"op": "test", "path": "/metadata/uid", "value": "other"}]

    with pytest.raises(Stale, match="422"):
        await client.send("PATCH", f"{SESSIONS}/patched", body=patch, content_type=JSON_PATCH)


async def test_invalid_json_patch_is_refused(client: KubeClient, cluster: Cluster) -> None:
    """A 422 for what the patch makes of the object is a no, unlike one for its test."""
    await cluster.session("no-evidence")
    patch = [{"op": "add", "path": "/status", "value": {"phase": "Destroyed"}}]
    path = f"{SESSIONS}/no-evidence/status"

    with pytest.raises(Refused, match="Destroyed needs evidence"):
        await client.send("PATCH", path, body=patch, content_type=JSON_PATCH)


async def test_missing_right_is_refused(client: KubeClient) -> None:
    """A 403 is a clear no with a word to branch on; repeating will not help."""
    with pytest.raises(Refused, match="cannot list resource") as refusal:
        await client.get("/api/v1/namespaces/default/secrets")

    assert refusal.value.reason == "Forbidden"


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ({"phase": "Destroyed"}, "Destroyed needs evidence"),
        ({"phase": "Asleep"}, "Unsupported value"),
        ({"nodeName": 5}, "must be of type string"),
    ],
    ids=["rule", "enum", "schema"],
)
async def test_invalid_merge_patch_is_refused_with_the_sentence(
    client: KubeClient, cluster: Cluster, status: dict[str, Any], sentence: str
) -> None:
    """What the CRD refuses comes with the CRD's own words, and is not to be repeated."""
    name = f"invalid-{sentence.split(maxsplit=1)[0].lower()}"
    await cluster.session(name)
    path = f"{SESSIONS}/{name}/status"

    with pytest.raises(Refused, match=sentence):
        await client.send("PATCH", path, body={"status": status}, content_type=MERGE_PATCH)


async def test_stopped_apiserver_is_unavailable() -> None:
    """Nobody listens there: the same call may succeed later."""
    async with aiohttp.ClientSession() as session:
        client = KubeClient(session, server=f"http://127.0.0.1:{free_port()}")

        with pytest.raises(ApiUnavailable):
            await client.get(f"{PODS}/any")


@pytest.mark.parametrize("is_connected", [True, False], ids=["open-connection", "new-connection"])
async def test_silent_apiserver_is_unavailable_in_time(
    session_api: ControlPlane, controller_kubeconfig: Path, *, is_connected: bool
) -> None:
    """A frozen apiserver costs one timeout, in a handshake too, and then all is well again."""
    async with kube_client(controller_kubeconfig, timeout=0.3) as client:
        if is_connected:
            await client.get(f"{PODS}/missing")

        with paused(session_api), pytest.raises(ApiUnavailable, match="Timeout"):
            await client.get(f"{PODS}/missing")
        assert await client.get(f"{PODS}/missing") is None


@pytest.mark.parametrize(
    ("headers", "after"),
    [
        ({"Retry-After": "7"}, timedelta(seconds=7)),
        ({}, None),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
    ],
    ids=["seconds", "none", "date"],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_busy_apiserver_says_when_to_come_back(
    status: int, headers: dict[str, str], after: timedelta | None
) -> None:
    """429 and 5xx are unavailable, not before the time that the apiserver asks for."""
    answer = Answer(status=status, body={"message": "slow down"}, headers=headers)
    async with ScriptedApiserver(answer) as server, aiohttp.ClientSession() as session:
        with pytest.raises(ApiUnavailable, match="slow down") as error:
            await KubeClient(session, server=server.url).get("/any")

    assert error.value.after == after


@pytest.mark.parametrize("status", [400, 405, 499])
async def test_any_other_4xx_is_refused(status: int) -> None:
    """A proxy's own numbers are no defect of ours."""
    answer = Answer(status=status, body="<html>no JSON at all</html>")
    async with ScriptedApiserver(answer) as server, aiohttp.ClientSession() as session:
        with pytest.raises(Refused, match="no JSON at all"):
            await KubeClient(session, server=server.url).get("/any")


async def test_watch_yields_a_line_per_event(client: KubeClient, cluster: Cluster) -> None:
    """Each line of a watch is one whole event, however the bytes come in."""
    for name in ("one", "two"):
        await cluster.session(name)
    params = {"watch": "1", "fieldSelector": "metadata.name=two"}

    async with aclosing(client.follow(SESSIONS, params)) as lines:
        event = json.loads(await anext(lines))

    assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "two")


async def test_silent_watch_is_dead(controller_kubeconfig: Path) -> None:
    """No event and no bookmark for so long: the connection leads nowhere."""
    async with kube_client(controller_kubeconfig, watch_silence=0.3) as client:
        with pytest.raises(ApiUnavailable, match="Timeout"):
            [_ async for _ in client.follow(PODS, {"watch": "1"})]


async def test_watch_of_a_silent_apiserver_gives_up_in_time(
    session_api: ControlPlane, controller_kubeconfig: Path
) -> None:
    """Opening a watch waits no longer for a handshake than any other request."""
    async with kube_client(controller_kubeconfig, timeout=0.3) as client:
        with paused(session_api), pytest.raises(ApiUnavailable, match=r"[Tt]imeout"):
            [_ async for _ in client.follow(PODS, {"watch": "1"})]
        assert await client.get(f"{PODS}/missing") is None


async def test_watch_without_the_right_is_refused(client: KubeClient) -> None:
    """A watch that the apiserver will not open says why."""
    with pytest.raises(Refused, match="cannot watch resource"):
        [_ async for _ in client.follow("/api/v1/secrets", {"watch": "1"})]
