"""The connection that is kept: what ends one, and what a client does then."""

import asyncio
import itertools
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.client_rig import QUICK, FakeGateway, until

from gpusession.client import (
    GatewayUnreachable,
    GaveUp,
    SessionEnded,
    SessionRevoked,
    TokenRefused,
    WrongSession,
    connect,
)


async def test_beats_come_at_the_period_of_the_welcome(gateway: FakeGateway) -> None:
    """A period of 200 ms with a tenth of jitter gives four beats in about a second."""
    async with connect(gateway.url, token="token-0", timing=QUICK):
        await until(lambda: gateway.count("frame", type="beat") >= 4, "four beats")
    times = [beat["at"] for beat in gateway.seen("frame", type="beat")]

    assert all(later - earlier > 0.15 for earlier, later in itertools.pairwise(times))


WELCOME = {
    "type": "welcome",
    "namespace": "default",
    "name": "chat",
    "uid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "pingSeconds": 30.0,
    "tokenExpiresInSeconds": 1800.0,
}


@pytest.mark.parametrize("before", [3600, 0], ids=["an hour", "none"])
async def test_beats_go_by_the_last_welcome(gateway: FakeGateway, before: float) -> None:
    """The heartbeat of a Session may change while its client is connected, and rests."""
    gateway.rules(heartbeatSeconds=before)
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        await session.connected(within=timedelta(seconds=5))
        gateway.say(**WELCOME, heartbeatSeconds=0.2)
        await until(lambda: gateway.count("frame", type="beat") >= 4, "four beats")

        assert session.facts is not None
        assert session.facts.heartbeat_seconds == 0.2
    assert gateway.count("connect") == 1


async def test_beats_end_where_none_are_expected_any_more(gateway: FakeGateway) -> None:
    """And the connection stays."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        await until(lambda: gateway.count("frame", type="beat") >= 2, "two beats")
        gateway.say(**WELCOME, heartbeatSeconds=0)
        await until(lambda: session.facts and not session.facts.heartbeat_seconds, "the news")
        await session.activity()  # a beat that was on its way has come by its ack
        beats = gateway.count("frame", type="beat")
        await asyncio.sleep(1)

    assert gateway.count("frame", type="beat") == beats
    assert gateway.count("connect") == 1


async def test_welcomes_without_end_keep_no_beat_back(gateway: FakeGateway) -> None:
    """The period counts from the last beat, not from the last welcome."""
    gateway.rules(heartbeatSeconds=1)
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        await session.connected(within=timedelta(seconds=5))

        async def has_beaten() -> None:
            while not gateway.count("frame", type="beat"):
                gateway.say(**WELCOME, heartbeatSeconds=1)
                await asyncio.sleep(0.2)

        await asyncio.wait_for(has_beaten(), 10)


async def test_silence_goes_by_the_last_welcome(gateway: FakeGateway) -> None:
    """Three pings of the new period, and not of the old one."""
    gateway.rules(heartbeatSeconds=0, pingSeconds=3600, silent=True)
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        await session.connected(within=timedelta(seconds=5))
        gateway.say(**WELCOME | {"pingSeconds": 0.2}, heartbeatSeconds=0)

        await until(lambda: gateway.count("connect") == 2, "a second connection")


@pytest.mark.parametrize("code", [1000, 1001, 1009, 1011, 1012, 1013, 4400, 4408])
async def test_client_comes_back_after_a_close(gateway: FakeGateway, code: int) -> None:
    """Whatever is not about the Session or its token is worth another try."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        gateway.hang_up(code)
        await until(lambda: gateway.count("connect") == 2, "a second connection")
        await session.activity()

    assert gateway.count("frame", type="activity") == 1


async def test_client_of_short_beats_does_not_rest_for_long(gateway: FakeGateway) -> None:
    """Beats of 200 ms: a pause of seconds would be an end of the Session."""
    patient = replace(QUICK, first_pause=timedelta(hours=1), longest_pause=timedelta(hours=1))
    async with connect(gateway.url, token="token-0", timing=patient):
        for times in (2, 3, 4):
            gateway.hang_up(1011)
            await until(lambda times=times: gateway.count("connect") == times, "a connection")

    assert gateway.count("connect") == 4


@pytest.mark.parametrize(
    ("code", "error"),
    [(4401, TokenRefused), (4403, WrongSession), (4409, SessionRevoked), (4410, SessionEnded)],
)
async def test_client_gives_up_where_trying_again_is_of_no_use(
    gateway: FakeGateway, code: int, error: type[GaveUp]
) -> None:
    """A caller learns it by a class of its own."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        gateway.hang_up(code)
        await until(lambda: not session.is_connected, "the end to be seen")
        with pytest.raises(error):
            await session.activity()

    assert gateway.count("connect") == 1


async def test_silence_of_three_pings_ends_a_connection(gateway: FakeGateway) -> None:
    """A half-open connection looks healthy from above; only silence tells."""
    gateway.rules(heartbeatSeconds=0, pingSeconds=0.2, silent=True)
    async with connect(gateway.url, token="token-0", timing=QUICK):
        began = gateway.seen("connect")[0]["at"]
        await until(lambda: gateway.count("connect") == 2, "a second connection")

    assert gateway.seen("connect")[1]["at"] - began > 0.6


async def test_a_gateway_whose_short_pings_are_late_is_kept(gateway: FakeGateway) -> None:
    """Each close is a disconnect, and a busy gateway would get its clients back all at once."""
    gateway.rules(heartbeatSeconds=0, pingSeconds=0.05)
    patient = replace(QUICK, ack_timeout=timedelta(seconds=5))
    async with connect(gateway.url, token="token-0", timing=patient) as session:
        await session.connected(within=timedelta(seconds=5))
        gateway.rules(pingSeconds=0.5)
        pongs = gateway.count("pong")
        await until(lambda: gateway.count("pong") >= pongs + 3, "three late pongs")

    assert gateway.count("connect") == 1


async def test_pings_alone_keep_a_connection(gateway: FakeGateway) -> None:
    """A Session that expects no heartbeat still has its pongs."""
    gateway.rules(heartbeatSeconds=0, pingSeconds=0.2)
    async with connect(gateway.url, token="token-0", timing=QUICK):
        await until(lambda: gateway.count("pong") >= 5, "five pongs")

    assert gateway.count("connect") == 1


async def test_beat_without_an_ack_ends_a_connection(gateway: FakeGateway) -> None:
    """A gateway that takes beats and records none is of no use, the sooner for short beats."""
    gateway.rules(unacknowledged=["beat"])
    timing = replace(QUICK, ack_timeout=timedelta(hours=1), least_ack_timeout=timedelta(seconds=1))
    async with connect(gateway.url, token="token-0", timing=timing):
        await until(lambda: gateway.count("connect") == 2, "a second connection")

    assert gateway.count("frame", type="beat") >= 1


async def test_client_outlives_a_killed_gateway(gateway: FakeGateway) -> None:
    """SIGKILL, a while of nobody, another life: the client is back by itself."""
    async with connect(gateway.url, token="token-0", timing=QUICK) as session:
        gateway.process.kill()
        await until(lambda: not session.is_connected, "the loss to be seen")
        await asyncio.sleep(0.5)
        await asyncio.to_thread(gateway.start)
        await session.connected(within=timedelta(seconds=5))
        await session.activity()

    assert gateway.count("connect") == 2


async def test_flapping_gateway_is_not_stormed(gateway: FakeGateway) -> None:
    """A welcome alone does not start the pauses anew: 400 ms at most, 200 ms on average."""
    gateway.rules(closeAfterWelcome=1012, heartbeatSeconds=1)
    async with connect(gateway.url, token="token-0", timing=QUICK):
        await asyncio.sleep(2)

    assert 3 <= gateway.count("connect") <= 25


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_honoured(gateway: FakeGateway, status: int) -> None:
    """A gateway that asks for a second of rest gets it."""
    gateway.rules(status=status, retryAfter=1)
    connecting = asyncio.create_task(_connect_once(gateway.url))
    await until(lambda: gateway.count("connect") == 1, "a first attempt")
    gateway.rules(status=0)
    await connecting
    first, second = (attempt["at"] for attempt in gateway.seen("connect"))

    assert second - first > 1.0


async def _connect_once(url: str) -> None:
    async with connect(url, token="token-0", timing=QUICK):
        pass


async def test_refused_upgrade_ends_the_client(gateway: FakeGateway) -> None:
    """A 401 before the upgrade is what 4401 is after it."""
    gateway.rules(status=401)

    with pytest.raises(TokenRefused):
        await _connect_once(gateway.url)


@pytest.mark.parametrize(
    ("reason", "error"), [("TokenRevoked", SessionRevoked), ("WrongSession", WrongSession)]
)
async def test_forbidden_upgrade_is_told_apart(
    gateway: FakeGateway, reason: str, error: type[GaveUp]
) -> None:
    """The status alone does not say whether it is the token or the Session."""
    gateway.rules(status=403, reason=reason)

    with pytest.raises(error):
        await _connect_once(gateway.url)


async def test_first_connection_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """Nobody listens: that is said after the patience, with how the last attempt ended."""
    nobody = FakeGateway(tmp_path)
    hasty = replace(QUICK, patience=timedelta(seconds=1))

    with pytest.raises(GatewayUnreachable, match="ClientConnectorError"):
        async with connect(nobody.url, token="token-0", timing=hasty):
            pass


async def test_token_is_replaced_before_it_expires(gateway: FakeGateway) -> None:
    """After two thirds of its life, and again; the next connection uses the newest."""
    gateway.rules(tokenExpiresInSeconds=0.9)
    async with connect(gateway.url, token="token-0", timing=QUICK):
        await until(lambda: gateway.count("frame", type="refresh") >= 2, "two refreshes")
        gateway.hang_up(1012)
        await until(lambda: gateway.count("connect") == 2, "a second connection")

    assert gateway.seen("connect")[1]["token"].startswith("fresh-")


async def test_refused_refresh_keeps_the_connection(gateway: FakeGateway) -> None:
    """The token at hand still has a third of its life: it is tried again."""
    gateway.rules(tokenExpiresInSeconds=0.3, refusedFrames={"refresh": "StoreUnavailable"})
    async with connect(gateway.url, token="token-0", timing=QUICK):
        await until(lambda: gateway.count("frame", type="refresh") >= 2, "two refreshes")

    assert gateway.count("connect") == 1


async def test_cancelled_body_cleans_up(gateway: FakeGateway) -> None:
    """A cancelled block closes its connection and leaves no task behind."""
    before = asyncio.all_tasks()

    async def body() -> None:
        async with connect(gateway.url, token="token-0", timing=QUICK):
            await asyncio.sleep(60)

    running = asyncio.create_task(body())
    await until(lambda: gateway.count("connect") == 1, "a connection")
    running.cancel()
    await asyncio.wait({running})
    await until(lambda: gateway.count("closed", code=1000) == 1, "the goodbye")

    assert asyncio.all_tasks() == before
