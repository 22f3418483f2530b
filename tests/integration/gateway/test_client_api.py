"""Everything that a WebSocket can, by plain HTTP, at a real gateway process."""

import asyncio
from datetime import timedelta

import pytest
from tests.support.gateway_rig import Desk, Known, StartGateway
from tests.support.records import watch
from tests.support.redis_server import RedisServer

from gpusession import tokens
from gpusession.api.session import RecordState
from gpusession.store.pulse import Pulse

VERBS = ("heartbeat", "activity", "refresh", "close")
STRANGER = tokens.mint("0" * 32).text


@pytest.fixture(scope="module")
def module_settings() -> dict[str, object]:
    """Wait little for a controller that is not there."""
    return {"close_wait": timedelta(seconds=0.3)}


async def test_a_heartbeat_is_recorded_and_tells_how_the_session_stands(front: Desk) -> None:
    """One request, one beat."""
    known = await front.known()

    reply = await front.call("POST", "/v1/heartbeat", known)

    assert reply.status == 200
    assert reply.body == {"namespace": "ns", "name": known.name, "phase": "Active"}
    assert await front.signs(known) == 1


async def test_a_heartbeat_calls_an_end_off(front: Desk) -> None:
    """And says so."""
    known = await front.known()
    await front.pending(known, "HeartbeatLost")

    reply = await front.call("POST", "/v1/heartbeat", known)

    assert reply.body["phase"] == "Active"
    assert (await front.record(known)).state is RecordState.ACTIVE


async def test_a_heartbeat_of_an_idle_session_tells_its_deadline(front: Desk) -> None:
    """It lives, but nobody uses it: that end only an activity calls off."""
    known = await front.known()
    await front.pending(known, "Idle")

    beaten = await front.call("POST", "/v1/heartbeat", known)
    used = await front.call("POST", "/v1/activity", known)

    assert beaten.body["phase"] == "PendingDestroy"
    assert beaten.body["deadline"].endswith("Z")
    assert used.body["phase"] == "Active"


async def test_an_activity_may_announce_work(front: Desk) -> None:
    """Busy for an hour without another word."""
    known = await front.known()

    await front.call("POST", "/v1/activity", known, json={"busySeconds": 3600})

    record = await front.record(known)
    assert record.busy is not None
    assert record.busy - record.act == timedelta(hours=1)


@pytest.mark.parametrize("body", ['{"busySeconds":-1}', '{"busySeconds":1e300}', "[]", "{"])
async def test_an_activity_that_makes_no_sense_counts_for_nothing(front: Desk, body: str) -> None:
    """400, without a word of what was sent."""
    known = await front.known()

    reply = await front.call("POST", "/v1/activity", known, data=body)

    assert reply.reason == (400, "BadRequest")
    assert await front.signs(known) == 0


async def test_a_refreshed_token_works_and_the_old_one_for_a_minute(front: Desk) -> None:
    """A client that crashes between answer and save is not locked out."""
    known = await front.known()

    reply = await front.call("POST", "/v1/refresh", known)
    fresh = Known(known.uid, known.name, reply.body["token"])

    assert reply.body["expiresInSeconds"] == pytest.approx(1800, abs=5)
    assert (await front.call("POST", "/v1/heartbeat", fresh)).status == 200
    assert (await front.call("POST", "/v1/heartbeat", known)).status == 200


async def test_a_close_that_nobody_has_acted_on_is_accepted(front: Desk) -> None:
    """202: the wish is safe in Redis, the controller comes to it."""
    known = await front.known()

    reply = await front.call("POST", "/v1/close", known)

    assert (reply.status, reply.body["phase"]) == (202, "PendingDestroy")
    assert (await front.record(known)).close


async def test_a_close_waits_for_the_controllers_word(front: Desk) -> None:
    """200 once the end has begun."""
    known = await front.known()
    closing = asyncio.create_task(front.call("POST", "/v1/close", known))
    while not (await front.record(known)).close:
        await asyncio.sleep(0.01)

    await front.sessions.claim(
        known.uid,
        to=RecordState.RELEASING,
        why="ExplicitClose",
        grace=timedelta(0),
        counter=None,
        watch=(await Pulse(front.redis).tick()).proof,
    )

    assert (await closing).status == 200


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        ({}, (401, "TokenUnknown")),
        ({"Authorization": "Bearer nonsense"}, (401, "TokenUnknown")),
        ({"Authorization": "Basic eDp5"}, (401, "TokenUnknown")),
        ({"Authorization": f"Bearer {STRANGER}"}, (503, "RecordMissing")),
    ],
    ids=["none", "nonsense", "basic", "no record"],
)
async def test_no_verb_works_without_a_good_token(
    front: Desk, verb: str, headers: dict[str, str], refusal: tuple[int, str]
) -> None:
    """A record that is missing is no proof against its client."""
    reply = await front.call("POST", f"/v1/{verb}", headers=headers)

    assert reply.reason == refusal
    assert ("Retry-After" in reply.headers) == (refusal[0] == 503)


@pytest.mark.parametrize("verb", VERBS)
async def test_a_token_of_another_session_is_refused_and_counts_for_nothing(
    front: Desk, verb: str
) -> None:
    """A client that mixed up two tokens keeps neither Session alive by mistake."""
    known = await front.known()
    headers = {"Gpusession-Session": "ns/another"}

    reply = await front.call("POST", f"/v1/{verb}", known, headers=headers)

    assert reply.reason == (403, "WrongSession")
    assert await front.signs(known) == 0


async def test_a_made_up_secret_is_unknown_and_keeps_nobody_alive(front: Desk) -> None:
    """The Session exists, the token does not, and nothing was lost."""
    await watch(front.redis)
    known = await front.known()
    forged = Known(known.uid, known.name, tokens.mint(known.uid).text)

    reply = await front.call("POST", "/v1/heartbeat", forged)

    assert reply.reason == (401, "TokenUnknown")
    assert (await front.record(known)).doubt is None


async def test_an_expired_token_is_told_apart(front: Desk) -> None:
    """Get another one, says the reason."""
    known = await front.known()
    await front.clients.mint(known.uid, known.digest, timedelta(milliseconds=1))
    await asyncio.sleep(0.01)

    reply = await front.call("POST", "/v1/heartbeat", known)

    assert reply.reason == (401, "TokenExpired")


async def test_a_revoked_session_is_told_apart(front: Desk) -> None:
    """Another token would not help."""
    known = await front.known()
    await front.clients.revoke(known.uid)

    reply = await front.call("POST", "/v1/heartbeat", known)

    assert reply.reason == (403, "TokenRevoked")


async def test_a_session_that_ends_takes_no_beat(front: Desk) -> None:
    """410: nothing calls that off."""
    known = await front.known()
    await front.sessions.mark(known.uid, RecordState.RELEASING)

    assert (await front.call("POST", "/v1/heartbeat", known)).reason == (410, "SessionEnding")


async def test_a_session_that_is_over_is_gone_and_not_missing(front: Desk) -> None:
    """Its record was removed on purpose, and this gateway has heard so."""
    known = await front.known()
    await front.sessions.forget(known.uid)
    await asyncio.sleep(0.3)

    assert (await front.call("POST", "/v1/heartbeat", known)).reason == (410, "SessionEnding")


async def test_a_request_waits_for_redis_once_not_for_each_of_its_steps(
    own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """The look comes just in time, and so would the beat; together they are too late."""
    front = await start_gateway(
        own_redis, redis_timeout=timedelta(seconds=5), beat_tick=timedelta(seconds=1.8)
    )
    known = await front.known()
    own_redis.pause()
    request = asyncio.create_task(front.call("POST", "/v1/heartbeat", known))
    await asyncio.sleep(1.8)
    own_redis.resume()

    assert (await request).reason == (503, "StoreUnavailable")
