"""What clients do and leave undone, and what becomes of their Sessions."""

import json
import time
from collections.abc import Iterator
from signal import SIGTERM
from typing import Any

import aiohttp
import pytest
from tests.support.clients_world import THRESHOLD, ClientsWorld
from tests.support.nvml_simulator import work
from tests.support.operator_stack import CONTROLLER_ACCOUNT, OperatorStack
from tests.support.processes import Process

pytestmark = pytest.mark.timeout(90)

NEVER_IDLE = {"idle": {"timeoutSeconds": 0}}
QUICK = {"disconnectGraceMilliseconds": 500} | NEVER_IDLE

ENDED = 3
"""Exit code of a client that has nothing left to beat for."""


@pytest.fixture(scope="module")
def worker(clients: ClientsWorld) -> Process:
    """Start first what takes long: a Session that only its GPU keeps from being idle."""
    clients.apply(clients.pod("worker", "--memory=1Gi", "--busy=80"))
    idle = {"timeoutSeconds": 5}
    clients.apply(clients.session("worker", idle=idle, heartbeat={"periodSeconds": 0}))
    clients.wait_phase("worker", "Active")
    return clients.client("worker")


@pytest.fixture(scope="module")
def quiet(clients: ClientsWorld, worker: Process) -> float:
    """Give three Sessions with clients, and tell since when they have been left alone."""
    assert worker.running
    for name in ("quiet-1", "quiet-2", "quiet-3"):
        clients.start_with_client(name, **NEVER_IDLE)
    return time.monotonic()


def test_a_client_that_leaves_ends_its_session(clients: ClientsWorld, quiet: float) -> None:
    """Half a second after it has gone, as the Session asks for."""
    assert quiet
    client = clients.start_with_client("leaves", **QUICK)

    client.signal(SIGTERM)

    assert clients.ended_as("leaves") == "Disconnected"


def test_a_killed_client_ends_its_session(clients: ClientsWorld) -> None:
    """Kill -9: the kernel closes its connection, and the gateway saw that."""
    client = clients.start_with_client("killed", **QUICK)

    client.kill()

    assert clients.ended_as("killed") == "Disconnected"


def test_a_client_that_falls_silent_ends_its_session(clients: ClientsWorld) -> None:
    """Its connection stays open; only the beats are missing. Its Pod goes for good."""
    client = clients.start_with_client("silent", **NEVER_IDLE)

    client.pause()

    assert clients.ended_as("silent") == "HeartbeatLost"
    assert clients.processes(clients.status("silent")["podUID"]) == set()


def test_a_client_that_returns_in_the_grace_keeps_its_session(clients: ClientsWorld) -> None:
    """The end had begun, and nothing was released."""
    client = clients.start_with_client("returns", destroyGraceSeconds=30, **NEVER_IDLE)
    born = clients.processes(clients.status("returns")["podUID"])
    client.pause()
    clients.wait_phase("returns", "PendingDestroy")

    client.resume()
    clients.wait_phase("returns", "Active")

    assert clients.reason("returns", "HeartbeatHealthy") == "ClientReturned"
    assert born
    assert all(each.lives for each in born)


async def test_a_client_hears_of_its_end_and_calls_it_off(clients: ClientsWorld) -> None:
    """It answers no ping, is told why and when it ends, and beats again."""
    clients.start("hears", "--memory=1Gi", destroyGraceSeconds=30, **clients.beats(delay=0))
    address = f"{clients.stack.front_url}/v1/connect"
    bearer = {"Authorization": f"Bearer {clients.token('hears')}"}
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(address, headers=bearer, autoping=False) as socket,
    ):
        told = await _frame(socket, "pendingDestroy")
        await socket.send_str('{"type":"beat"}')
        await _frame(socket, "restored")

    assert (told["reason"], told["cancellable"]) == ("HeartbeatLost", True)
    clients.wait_phase("hears", "Active")


async def _frame(socket: aiohttp.ClientWebSocketResponse[bool], kind: str) -> dict[str, Any]:
    while True:
        message = await socket.receive(20)
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.PING), message
        if message.type is aiohttp.WSMsgType.TEXT:
            frame: dict[str, Any] = json.loads(message.data)
            if frame["type"] == kind:
                return frame


def test_a_client_may_end_its_session(clients: ClientsWorld) -> None:
    """The gateway answers when the controller has it; the client beside is told to stop."""
    client = clients.start_with_client("closed", **NEVER_IDLE)

    status, _ = clients.call("POST", "/v1/close", clients.token("closed"))

    assert status == 200
    assert clients.ended_as("closed") == "ExplicitClose"
    assert client.wait(10) == ENDED


def test_beats_alone_do_not_keep_a_session_from_being_idle(clients: ClientsWorld) -> None:
    """Its client lives, and nobody uses it."""
    client = clients.start_with_client("idle", idle={"timeoutSeconds": 10, "signals": ["Client"]})

    assert clients.ended_as("idle") == "Idle"
    assert client.wait(10) == ENDED


def test_activity_keeps_a_session(clients: ClientsWorld) -> None:
    """As long as its client says that it is used."""
    idle = {"timeoutSeconds": 10, "signals": ["Client"]}
    client = clients.start_with_client("used", "--activity", idle=idle)
    time.sleep(13)
    assert clients.status("used")["phase"] == "Active"

    client.kill()

    assert clients.ended_as("used") == "HeartbeatLost"


def test_a_lifetime_ends_a_session_whatever_its_client_does(clients: ClientsWorld) -> None:
    """It beats and is active all the while."""
    clients.start_with_client("aged", "--activity", maxLifetimeSeconds=10)

    assert clients.ended_as("aged") == "LifetimeExceeded"


def test_an_annotation_revokes_a_session(clients: ClientsWorld) -> None:
    """It ends, and its client gives up for good."""
    client = clients.start_with_client("annotated", **NEVER_IDLE)

    clients.kubectl("annotate", "session", "annotated", "gpusession.dev/revoke=leaked")

    assert clients.ended_as("annotated") == "Revoked"
    assert client.wait(10) == ENDED


def test_all_sessions_of_a_user_are_revoked_at_once(clients: ClientsWorld) -> None:
    """By whoever may delete tokens here; the other user's Session goes on."""
    for name, user in (("hers-1", "ada"), ("hers-2", "ada"), ("his", "bob")):
        clients.start_with_client(name, user=user, **NEVER_IDLE)

    who = f"user=ada&namespace={clients.namespace}"
    answer = clients.call("DELETE", f"/v1/tokens?{who}", clients.identity.read_text())

    assert answer == (200, {"revoked": 2})
    assert [clients.ended_as(name) for name in ("hers-1", "hers-2")] == ["Revoked"] * 2
    assert clients.status("his")["phase"] == "Active"


@pytest.fixture
def observed(stack: OperatorStack) -> Iterator[ClientsWorld]:
    """Give a namespace in observe mode."""
    world = ClientsWorld(stack, "e2e-observed")
    stack.plane.kubectl("label", "namespace", world.namespace, "gpusession.dev/mode=observe")
    yield world
    world.end_clients()
    stack.plane.kubectl("delete", "namespace", world.namespace, "--wait=false", check=False)


def test_observe_mode_tells_and_ends_nobody_until_it_is_over(observed: ClientsWorld) -> None:
    """An Event says once what would have been; without the label it comes to pass."""
    observed.start_with_client("seen", **QUICK).kill()
    events = ("get", "events", "--field-selector=reason=WouldEnd", "-o=name")
    observed.wait(lambda: observed.kubectl(*events), "the Event")
    time.sleep(THRESHOLD + 1)
    assert observed.status("seen")["phase"] == "Active"
    assert len(observed.kubectl(*events).split()) == 1

    label = ("label", "namespace", observed.namespace, "gpusession.dev/mode-")
    observed.stack.plane.kubectl(*label)

    assert observed.ended_as("seen") in ("Disconnected", "HeartbeatLost")


def test_living_clients_cost_kubernetes_nothing(clients: ClientsWorld, quiet: float) -> None:
    """Not one write about three Sessions whose clients have beaten for 20 seconds."""
    time.sleep(max(0.0, quiet + 20 - time.monotonic()))

    written = [
        request
        for request in clients.stack.plane.mutating_requests()
        if request.user == CONTROLLER_ACCOUNT and request.name.startswith("quiet-")
    ]
    since_active = [request for request in written if request.namespace == clients.namespace]
    assert len(since_active) == 2 * 3  # finalizer with intent, Active
    assert [clients.status(f"quiet-{i}")["phase"] for i in (1, 2, 3)] == ["Active"] * 3


def test_a_working_gpu_keeps_a_session_and_an_idle_one_does_not(
    clients: ClientsWorld, worker: Process
) -> None:
    """For longer than it may be idle nobody but its GPU works; then that stops too."""
    assert clients.status("worker")["phase"] == "Active"
    assert worker.running

    allocations = clients.node("node-a").nvml_state / "allocations"
    (workload,) = clients.processes(clients.status("worker")["podUID"])
    for row in allocations.glob(f"{workload.pid}-*"):
        work(row, 0)

    assert clients.ended_as("worker") == "Idle"
