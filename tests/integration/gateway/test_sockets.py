"""From the upgrade to the end of a WebSocket, at a real gateway process."""

import asyncio
from datetime import timedelta

import aiohttp
import pytest
from tests.support.gateway_rig import Desk, Known, Socket, eventually

from gpusession import tokens
from gpusession.api.session import RecordState

ORIGIN = "https://notebooks.example"
STRANGER = tokens.mint("0" * 32).text


@pytest.fixture(scope="module")
def module_settings() -> dict[str, object]:
    """Let pages of one origin in, and wait little for a hello."""
    return {"allowed_origins": f'["{ORIGIN}"]', "hello_timeout": timedelta(seconds=0.5)}


async def test_a_welcome_tells_what_a_client_plans_by(front: Desk) -> None:
    """Session, heartbeat, ping and the life of the token."""
    known = await front.known()

    async with front.socket(known) as socket:
        assert socket.welcome.pop("tokenExpiresInSeconds") == pytest.approx(1800, abs=5)
        assert socket.welcome == {
            "type": "welcome",
            "namespace": "ns",
            "name": known.name,
            "uid": known.uid,
            "heartbeatSeconds": 30,
            "pingSeconds": 30,
        }


@pytest.mark.parametrize(
    ("period", "threshold", "ping"),
    [(5, 15, 5), (1, 60, 1), (60, 180, 30), (40, 80, 30), (0, 0, 30)],
)
async def test_a_welcome_tells_how_soon_a_silent_client_is_pinged(
    front: Desk, period: float, threshold: float, ping: float
) -> None:
    """In each heartbeat period, and each 30 s."""
    known = await front.known(**_heartbeat(period, threshold))

    async with front.socket(known) as socket:
        assert socket.welcome["pingSeconds"] == ping


async def test_a_client_that_only_answers_pings_is_heard_in_time(front: Desk) -> None:
    """A browser beats by its pongs, also where 30 s without one would end its Session."""
    known = await front.known(**_heartbeat(period=0.1, threshold=0.2))

    async with front.reading(known) as socket:
        await eventually(lambda: front.has_beaten(known, 5), what="five beats")
        assert not socket.raw.closed


def _heartbeat(period: float, threshold: float) -> dict[str, timedelta]:
    seconds = {"heartbeat_period": period, "heartbeat_threshold": threshold}
    return {name: timedelta(seconds=value) for name, value in seconds.items()}


async def test_an_open_connection_is_counted_and_its_end_is_seen(front: Desk) -> None:
    """One in the record while it lasts; a client that goes is a seen disconnect."""
    known = await front.known()

    async with front.socket(known):
        assert await _count(front, known) == 1

    await eventually(lambda: _is_left(front, known), what="the disconnect")
    assert await _count(front, known) == 0


async def _is_left(front: Desk, known: Known) -> bool:
    return (await front.record(known)).dc is not None


async def _count(front: Desk, known: Known) -> int:
    return sum((await front.record(known)).connections.values())


async def test_a_client_may_say_hello_instead_of_a_header(front: Desk) -> None:
    """Browsers cannot set headers on a WebSocket."""
    known = await front.known()
    headers = {"Origin": ORIGIN}

    async with front.http.ws_connect(front.gateway.url + "/v1/connect", headers=headers) as raw:
        answer = await Socket(raw).ask("hello", token=known.token, session=f"ns/{known.name}")

    assert (answer["type"], answer["uid"]) == ("welcome", known.uid)


@pytest.mark.parametrize(
    ("hello", "reason", "code"),
    [
        ('{"type":"beat"}', "BadRequest", 4400),
        ("no json", "BadRequest", 4400),
        ('{"type":"hello","token":"nonsense"}', "TokenUnknown", 4401),
        (f'{{"type":"hello","token":"{STRANGER}"}}', "RecordMissing", 1013),
        (None, "TokenUnknown", 4401),
    ],
    ids=["beat", "noise", "no token", "no record", "silence"],
)
async def test_a_bad_hello_gets_a_reason_and_a_code(
    front: Desk, hello: str | None, reason: str, code: int
) -> None:
    """After the upgrade there are no HTTP answers any more."""
    async with front.http.ws_connect(front.gateway.url + "/v1/connect") as raw:
        socket = Socket(raw)
        if hello is not None:
            await raw.send_str(hello)

        assert (await socket.next())["reason"] == reason
        assert await socket.closed() == code


async def test_a_hello_for_another_session_is_not_yours(front: Desk) -> None:
    """4403, and nothing was counted."""
    known = await front.known()

    async with front.http.ws_connect(front.gateway.url + "/v1/connect") as raw:
        socket = Socket(raw)
        answer = await socket.ask("hello", token=known.token, session="ns/another")

        assert (answer["reason"], await socket.closed()) == ("WrongSession", 4403)
    assert await front.signs(known) == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer nonsense"}, 401),
        ({"Authorization": f"Bearer {STRANGER}"}, 503),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-WebSocket-Protocol": "chat"}, 400),
    ],
    ids=["token", "record", "origin", "null origin", "subprotocol"],
)
async def test_before_the_upgrade_refusals_are_http(
    front: Desk, headers: dict[str, str], status: int
) -> None:
    """A client learns it from the status of its handshake."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await front.http.ws_connect(front.gateway.url + "/v1/connect", headers=headers)

    assert refused.value.status == status


async def test_a_token_of_another_session_opens_no_socket(front: Desk) -> None:
    """The header names the Session that the client believes in."""
    known = await front.known()
    headers = known.headers | {"Gpusession-Session": "ns/another"}

    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await front.http.ws_connect(front.gateway.url + "/v1/connect", headers=headers)

    assert refused.value.status == 403


async def test_a_plain_get_is_told_to_upgrade(front: Desk) -> None:
    """For whoever tries it with curl."""
    reply = await front.call("GET", "/v1/connect", await front.known())

    assert reply.reason == (400, "BadRequest")


async def test_who_connects_to_an_end_that_may_be_called_off_calls_it_off(front: Desk) -> None:
    """Coming back is the point of a grace."""
    known = await front.known()
    await front.pending(known, "Disconnected")

    async with front.socket(known):
        assert (await front.record(known)).state is RecordState.ACTIVE


async def test_who_connects_while_idle_counts_down_is_told(front: Desk) -> None:
    """A connection alone is no activity; an activity is."""
    known = await front.known()
    await front.pending(known, "Idle")

    async with front.socket(known) as socket:
        told = await socket.next()
        await socket.say("activity")
        answers = {(await socket.next())["type"] for _ in range(2)}

    assert (told["type"], told["reason"], told["cancellable"]) == ("pendingDestroy", "Idle", True)
    assert answers == {"restored", "ack"}


async def test_a_session_that_ends_takes_no_connection(front: Desk) -> None:
    """410: a new one is of no use."""
    known = await front.known()
    await front.sessions.mark(known.uid, RecordState.RELEASING)

    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await front.http.ws_connect(front.gateway.url + "/v1/connect", headers=known.headers)

    assert refused.value.status == 410


async def test_two_connections_of_a_session_count_as_two(front: Desk) -> None:
    """Only the last to go leaves the Session alone."""
    known = await front.known()

    async with front.socket(known) as stays:
        async with front.socket(known):
            assert await _count(front, known) == 2
        while await _count(front, known) == 2:
            await asyncio.sleep(0.01)

        assert (await front.record(known)).dc is None
        assert (await stays.ask("beat"))["of"] == "beat"
