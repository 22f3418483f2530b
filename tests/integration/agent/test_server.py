"""The agent's HTTP API: who gets in, what is refused, and what the routes answer."""

import asyncio
import io
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from tests.support.agent_rig import GPU, AgentRig

from gpusession.agent.callers import CallerCheck
from gpusession.agent.inventory import Inventory
from gpusession.agent.server import MAX_BODY, AgentApi, Probes, api_app, probe_app
from gpusession.api.release import BindReport, ReleaseRequest, ReleaseResponse, Verdict

CONTROLLER = "system:serviceaccount:gpusession-system:gpusession-controller"
GOOD = {"Authorization": "Bearer good"}


class Client:
    """Both ports of an agent, and a session to talk to them with."""

    def __init__(self, rig: AgentRig, session: aiohttp.ClientSession, api: str, probe: str) -> None:
        self.rig = rig
        self.probe = probe
        self._session = session
        self._api = api

    async def call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send one request to the API, as the controller unless told otherwise."""
        headers = GOOD if headers is None else headers
        url = self._api + path
        data = io.BytesIO(body)
        async with self._session.request(method, url, data=data, headers=headers) as answer:
            return answer.status, await answer.read()

    async def probed(self, path: str) -> tuple[int, str]:
        """Ask the plain port."""
        async with self._session.get(self.probe + path) as answer:
            return answer.status, await answer.text()


async def _serve(app: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


@pytest.fixture
async def client(rig: AgentRig) -> AsyncIterator[Client]:
    """Give an agent that serves."""
    rig.apiserver.tokens["good"] = (CONTROLLER, ["gpusession-agent"])
    rig.apiserver.tokens["other"] = ("somebody", ["gpusession-agent"])
    callers = CallerCheck(
        rig.reviews,
        allowed_caller=CONTROLLER,
        cache=timedelta(seconds=30),
        monotonic=asyncio.get_running_loop().time,
    )
    api = AgentApi(
        binder=rig.binder,
        releaser=rig.releaser,
        inventory=Inventory(nvml=rig.nvml, ledger=rig.ledger),
        usage=rig.usage,
        ledger=rig.ledger,
    )
    await rig.rebuild.run()
    probes = Probes(nvml=rig.nvml, ledger=rig.ledger, namespace=rig.namespace, rebuild=rig.rebuild)
    api_runner, api_url = await _serve(api_app(api, callers))
    probes.note_serving(node="node-1", port=0)
    probe_runner, probe_url = await _serve(probe_app(probes))
    async with aiohttp.ClientSession() as session:
        yield Client(rig, session, api_url, probe_url)
    await api_runner.cleanup()
    await probe_runner.cleanup()


def _problem(answer: tuple[int, bytes]) -> tuple[int, str, str]:
    problem = msgspec.json.decode(answer[1])
    return answer[0], problem["reason"], problem["message"]


async def test_bind_and_release_over_http(client: Client) -> None:
    """The words of api.release go both ways; a batch is answered in its order."""
    rig = client.rig
    one, two = await rig.start_pod("one"), await rig.start_pod("two")
    bound = await client.call("POST", "/v1/bind", msgspec.json.encode(rig.bind_request(one)))
    request = ReleaseRequest(releases=(rig.order(two, "session-2"), rig.order(one)))

    status, body = await client.call("POST", "/v1/releases", msgspec.json.encode(request))
    reports = msgspec.json.decode(body, type=ReleaseResponse).reports

    assert msgspec.json.decode(bound[1], type=BindReport).bound
    assert status == 200
    assert [report.session_uid for report in reports] == ["session-2", "session-1"]
    assert {report.verdict for report in reports} == {Verdict.FREED}


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        ({}, (401, "Unauthorized")),
        ({"Authorization": "Bearer bad"}, (401, "Unauthorized")),
        ({"Authorization": "Bearer other"}, (403, "Forbidden")),
    ],
    ids=["no token", "bad token", "another account"],
)
@pytest.mark.parametrize(
    "route",
    [
        "POST /v1/bind",
        "POST /v1/releases",
        "GET /v1/gpus",
        "GET /v1/contexts",
        "GET /v1/usage",
        "GET /nowhere",
    ],
)
async def test_strangers_get_nowhere(
    client: Client, route: str, headers: dict[str, str], refusal: tuple[int, str]
) -> None:
    """Every route of the API is guarded, even those that do not exist."""
    answer = await client.call(*route.split(), headers=headers)

    assert _problem(answer)[:2] == refusal


async def test_without_the_apiserver_an_unknown_caller_must_wait(client: Client) -> None:
    """503, not 401: the caller may be right and comes again."""
    client.rig.apiserver.is_down = True

    assert _problem(await client.call("GET", "/v1/gpus"))[:2] == (503, "Unavailable")


def _bind_body(**changes: Any) -> bytes:
    body = {
        "sessionUID": "session-1",
        "sessionNamespace": "default",
        "sessionName": "session",
        "podName": "pod",
        "podUID": "11111111-2222-4333-8444-555555555555",
    }
    return msgspec.json.encode({k: v for k, v in (body | changes).items() if v is not None})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "Input data was truncated"),
        (_bind_body(podUID=None), "missing required field `podUID`"),
        (_bind_body(podUID="../../etc"), "podUID '../../etc' is malformed"),
        (_bind_body(podName="../secrets/x"), "podName"),
        (_bind_body(podName=7), "Expected `str`"),
    ],
)
async def test_a_malformed_request_is_told_what_is_wrong(
    client: Client, body: bytes, sentence: str
) -> None:
    """400 with the sentence; nothing becomes a path or a URL unchecked."""
    status, reason, message = _problem(await client.call("POST", "/v1/bind", body))

    assert (status, reason) == (400, "BadRequest")
    assert sentence in message


async def test_unknown_fields_are_ignored(client: Client) -> None:
    """A newer controller may say more."""
    status, body = await client.call("POST", "/v1/bind", _bind_body(newField=1))

    assert status == 200
    assert msgspec.json.decode(body)["reason"] == "PodNotFound"


async def test_a_body_beyond_the_cap_is_refused(client: Client) -> None:
    """Memory is bounded."""
    answer = await client.call("POST", "/v1/bind", b" " * (MAX_BODY + 1))

    assert answer[0] == 413


async def test_a_deposed_leader_gets_conflict(client: Client) -> None:
    """Orders of an older epoch are refused once a newer leader has spoken."""
    await client.call("POST", "/v1/bind", _bind_body(leaderEpoch=5))

    answer = await client.call("POST", "/v1/bind", _bind_body(leaderEpoch=4))

    assert _problem(answer)[:2] == (409, "StaleLeader")
    assert msgspec.json.decode(answer[1])["leaderEpoch"] == 5


async def test_gpus_and_contexts_tell_what_is_there(client: Client) -> None:
    """For humans: devices with their use, Sessions with their state."""
    rig = client.rig
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))

    gpus = msgspec.json.decode((await client.call("GET", "/v1/gpus"))[1])["gpus"]
    contexts = msgspec.json.decode((await client.call("GET", "/v1/contexts"))[1])["contexts"]

    assert (gpus[0]["uuid"], gpus[0]["processes"], len(gpus)) == (GPU, 1, 2)
    assert [(c["sessionUID"], c["state"], c["seenHolding"]) for c in contexts] == [
        ("session-1", "bound", True)
    ]


async def test_usage_tells_of_every_bound_session(client: Client) -> None:
    """Null and Unknown where nothing has been seen yet."""
    rig = client.rig
    await rig.binder.bind(rig.bind_request(await rig.start_pod()))

    status, body = await client.call("GET", "/v1/usage")

    unseen = {"busy": "Unknown", "utilizationPercent": None, "sampledSeconds": 0.0}
    assert status == 200
    assert msgspec.json.decode(body) == {
        "bootID": rig.boot_id,
        "sessions": [{"sessionUID": "session-1"} | unseen],
    }


async def test_a_healthy_agent_is_ready_and_counts(client: Client) -> None:
    """Probes and metrics are open on the plain port."""
    await client.call("GET", "/v1/gpus")

    assert (await client.probed("/healthz"))[0] == 200
    assert (await client.probed("/readyz"))[0] == 200
    assert (
        'gpusession_agent_requests_total{code="200",route="/v1/gpus"}'
        in (await client.probed("/metrics"))[1]
    )


async def test_an_agent_that_could_give_no_verdict_is_not_ready(client: Client) -> None:
    """It says why: here the proof of the pid namespace is gone."""
    client.rig.socket.unlink()

    status, text = await client.probed("/readyz")

    assert status == 503
    assert "pid namespace" in text
    assert (await client.probed("/healthz"))[0] == 200


async def test_agent_that_takes_no_orders_yet_is_not_ready(rig: AgentRig) -> None:
    """The plain port listens first; kubelet must not send anybody to the other one."""
    await rig.rebuild.run()
    probes = Probes(nvml=rig.nvml, ledger=rig.ledger, namespace=rig.namespace, rebuild=rig.rebuild)
    runner, url = await _serve(probe_app(probes))
    async with aiohttp.ClientSession() as session:
        client = Client(rig, session, url, url)

        before = await client.probed("/readyz")
        probes.note_serving(node="node-1", port=8443)
        after = await client.probed("/readyz")

    await runner.cleanup()
    assert (before[0], after[0]) == (503, 200)
    assert "no order is taken yet" in before[1]
