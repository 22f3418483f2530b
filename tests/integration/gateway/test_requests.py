"""What no route of a real gateway process lets pass."""

import subprocess

import pytest
from tests.support.gateway_rig import Desk

from gpusession import tokens
from gpusession.api.frames import MAX_FRAME

TOKEN = tokens.mint("0" * 32).text


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/heartbeat?token={TOKEN}",
        "/v1/heartbeat?access_token=x",
        f"/v1/connect?key={TOKEN}",
        f"/v1/{TOKEN}",
    ],
    ids=["token", "access_token", "any key", "path"],
)
async def test_a_token_in_an_address_is_refused_whatever_else_is_right(
    front: Desk, path: str
) -> None:
    """Addresses are logged on the way, so such a token is known to others."""
    reply = await front.call("POST", path, await front.known())

    assert reply.reason == (400, "TokenInURL")


@pytest.mark.parametrize(
    ("method", "path", "refusal"),
    [
        ("GET", "/v1/heartbeat", (405, "MethodNotAllowed")),
        ("POST", "/v1/nothing", (404, "NotFound")),
        ("GET", "/metrics", (404, "NotFound")),
    ],
)
async def test_what_is_not_there_is_said_in_the_same_words(
    front: Desk, method: str, path: str, refusal: tuple[int, str]
) -> None:
    """Every refusal is a reason and a sentence."""
    assert (await front.call(method, path)).reason == refusal


async def test_a_body_beyond_the_cap_is_refused(front: Desk) -> None:
    """Memory is bounded."""
    body = b" " * (MAX_FRAME + 1)

    reply = await front.call("POST", "/v1/activity", await front.known(), data=body)

    assert reply.reason == (413, "TooLarge")


async def test_a_page_of_another_origin_gets_nothing(front: Desk) -> None:
    """Nobody allowed any; other clients send no Origin."""
    headers = {"Origin": "https://elsewhere.example"}

    reply = await front.call("POST", "/v1/heartbeat", await front.known(), headers=headers)

    assert reply.reason == (403, "OriginRefused")


async def test_refusals_are_counted_by_reason(front: Desk) -> None:
    """From a fixed set, so that nobody fills the metrics."""
    name = 'gpusession_gateway_refusals_total{reason="NotFound"}'
    before = await front.metric(name)
    await front.call("POST", "/v1/nothing")

    assert await front.metric(name) == before + 1


async def test_no_token_is_in_the_log(front: Desk) -> None:
    """Not with a good request, a bad one, or one that is no HTTP at all."""
    known = await front.known()
    secret = known.token[-43:]
    await front.call("POST", "/v1/heartbeat", known)
    await front.call("POST", f"/v1/heartbeat?token={known.token}")
    await front.call("POST", "/v1/activity", known, data=f'{{"busySeconds":"{known.token}"}}')
    for line in (f"Authorization: Bearer {known.token}\x01", f"{known.token} / HTTP/1.1"):
        request = f"POST /v1/heartbeat HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n"
        _send(front, request.encode())
        _send(front, line.encode() + b"\r\n\r\n")
    async with front.socket(known) as socket:
        await socket.say("hello", token=known.token)
        await socket.closed()

    assert secret not in front.gateway.log_text()
    assert known.digest not in front.gateway.log_text()


def _send(front: Desk, request: bytes) -> None:
    host, _, port = front.gateway.url.removeprefix("http://").partition(":")
    command = ["timeout", "5", "bash", "-c", f"exec 3<>/dev/tcp/{host}/{port}; cat >&3; cat <&3"]
    subprocess.run(command, input=request, stdout=subprocess.DEVNULL, check=False)
