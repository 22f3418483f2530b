"""Signs of life in real servers: what a beat, an activity, a close and a knock do."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from tests.support.records import (
    FAR,
    GATEWAY,
    TOKEN,
    UID,
    bend,
    expiry,
    moment,
    news,
    now_ms,
    open_with_token,
    read_record,
    score,
)

from gpusession.api.session import Reason, RecordState
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import Answer, ClientStore
from gpusession.store.sessions import PAGE

ZERO = timedelta(0)
HOUR = 3_600_000

Verb = Callable[[ClientStore, str], Awaitable[Answer]]


async def beat(clients: ClientStore, token: str = TOKEN) -> Answer:
    """Beat once."""
    return (await clients.beats([(UID, token)], GATEWAY))[0]


async def act(clients: ClientStore, token: str = TOKEN) -> Answer:
    """Do something."""
    return await clients.activity(UID, token, GATEWAY, ZERO)


async def connect(clients: ClientStore, token: str = TOKEN) -> Answer:
    """Open a connection."""
    return (await clients.connect(UID, token, GATEWAY, "1"))[0]


async def close(clients: ClientStore, token: str = TOKEN) -> Answer:
    """Wish the end."""
    return await clients.close(UID, token)


async def refresh(clients: ClientStore, token: str = TOKEN) -> Answer:
    """Ask for a new token."""
    return (await clients.refresh(UID, token, "new")).answer


VERBS = pytest.mark.parametrize("verb", [beat, act, connect, close, refresh])
LIFE_SIGNS = pytest.mark.parametrize("verb", [beat, act, connect])


@LIFE_SIGNS
async def test_sign_of_life_is_noted(client: RedisClient, verb: Verb) -> None:
    """The record says when and where it was heard, and its counter moves."""
    await open_with_token(client)
    await bend(client, hb=5)

    answer = await verb(ClientStore(client), TOKEN)

    record = await read_record(client)
    assert (answer, record.gw, record.n) == (Answer.OK, GATEWAY, 1)
    assert record.hb.timestamp() * 1000 == pytest.approx(await now_ms(client), abs=5000)


async def test_only_activity_is_use(client: RedisClient) -> None:
    """A beat, and a connection, leave the idle timeout alone."""
    await open_with_token(client)
    await bend(client, act=5)
    clients = ClientStore(client)

    await beat(clients)
    await connect(clients)
    beaten = await read_record(client)
    await act(clients)

    assert beaten.act == moment(5)
    assert (await read_record(client)).act > moment(5)


async def test_busy_lease_lasts_from_now(client: RedisClient) -> None:
    """A client that computes for ten minutes is used for ten minutes."""
    await open_with_token(client)

    await ClientStore(client).activity(UID, TOKEN, GATEWAY, timedelta(minutes=10))

    record = await read_record(client)
    assert record.busy == record.act + timedelta(minutes=10)


async def test_plain_activity_is_no_lease(client: RedisClient) -> None:
    """Who says nothing of being busy is not busy."""
    await open_with_token(client)

    await act(ClientStore(client))

    assert (await read_record(client)).busy is None


async def test_shorter_lease_takes_nothing_back(client: RedisClient) -> None:
    """Of two busy clients the longer one counts, and a plain activity ends no lease."""
    await open_with_token(client)
    clients = ClientStore(client)
    await clients.activity(UID, TOKEN, GATEWAY, timedelta(minutes=10))
    before = await read_record(client)

    await clients.activity(UID, TOKEN, GATEWAY, timedelta(minutes=1))
    await clients.activity(UID, TOKEN, GATEWAY, ZERO)

    assert (await read_record(client)).busy == before.busy


@LIFE_SIGNS
@pytest.mark.parametrize("why", [Reason.HEARTBEAT_LOST, Reason.DISCONNECTED])
async def test_return_calls_the_end_off(client: RedisClient, verb: Verb, why: Reason) -> None:
    """A pending end for silence is gone with its reason, its time limit and the disconnect."""
    await open_with_token(client)
    await bend(client, state="pending", why=why, until=5, dc=4)

    answer = await verb(ClientStore(client), TOKEN)

    record = await read_record(client)
    assert (answer, record.state) == (Answer.RETURNED, RecordState.ACTIVE)
    assert (record.why, record.until, record.dc) == (None, None, None)
    assert await news(client) == [("returned", UID)]


async def test_active_session_has_nothing_to_return_from(client: RedisClient) -> None:
    """A reason that was left behind calls nothing off."""
    await open_with_token(client)
    await bend(client, why=Reason.HEARTBEAT_LOST)

    assert await beat(ClientStore(client)) is Answer.OK


@LIFE_SIGNS
async def test_return_is_looked_at_soon(client: RedisClient, verb: Verb) -> None:
    """The next look is not left at the end of a long grace."""
    await open_with_token(client)
    await bend(client, state="pending", why=Reason.HEARTBEAT_LOST)
    await client.call("ZADD", keys.DEADLINES, FAR, UID)

    await verb(ClientStore(client), TOKEN)

    assert (await score(client) or FAR) <= await now_ms(client)


@pytest.mark.parametrize(
    ("verb", "why", "answer"),
    [
        (beat, Reason.IDLE, Answer.OK),
        (connect, Reason.IDLE, Answer.OK),
        (act, Reason.IDLE, Answer.RETURNED),
        (act, Reason.LIFETIME_EXCEEDED, Answer.OK),
        (beat, Reason.EXPLICIT_CLOSE, Answer.OK),
        (act, Reason.DELETED, Answer.OK),
    ],
)
async def test_what_calls_off_what(
    client: RedisClient, verb: Verb, why: Reason, answer: Answer
) -> None:
    """Idleness ends by use, not by a beat; nothing calls off a wish or the cap."""
    await open_with_token(client)
    await bend(client, state="pending", why=why, until=FAR)

    assert await verb(ClientStore(client), TOKEN) is answer
    assert ((await read_record(client)).state is RecordState.PENDING) == (answer is Answer.OK)


@VERBS
@pytest.mark.parametrize("state", ["releasing", "gone"])
async def test_late_client_is_told_of_the_end(client: RedisClient, verb: Verb, state: str) -> None:
    """Once the release may have begun nothing is changed any more."""
    await open_with_token(client)
    await bend(client, state=state, why=Reason.HEARTBEAT_LOST)
    before = await client.call("HGETALL", keys.record(UID))

    assert await verb(ClientStore(client), TOKEN) is Answer.ENDING
    assert await client.call("HGETALL", keys.record(UID)) == before


@VERBS
async def test_client_makes_no_record(client: RedisClient, verb: Verb) -> None:
    """After a loss a client is sent away, and leaves no stump behind."""
    await open_with_token(client)
    await client.call("FLUSHALL")

    assert await verb(ClientStore(client), TOKEN) is Answer.MISSING
    assert await client.call("KEYS", "*") == []


@VERBS
@pytest.mark.parametrize(
    "damage", [{"cap": "x"}, {"rev": ""}, {"cap": "nan"}, {"cap": -1}, {"cap": 10**15}]
)
async def test_damaged_record_is_missing(
    client: RedisClient, verb: Verb, damage: dict[str, str]
) -> None:
    """What cannot be understood is neither used nor repaired by a client."""
    await open_with_token(client)
    await bend(client, **damage)

    assert await verb(ClientStore(client), TOKEN) is Answer.MISSING


async def test_one_broken_key_spoils_no_batch(client: RedisClient) -> None:
    """A record or token key of another type is one Session's trouble."""
    for uid in ("a", "b", "c"):
        await open_with_token(client, uid=uid)
    await client.call("SET", keys.record("a"), "x")
    await client.call("SET", keys.tokens("b"), "x")

    answers = await ClientStore(client).beats([(uid, TOKEN) for uid in "abc"], GATEWAY)

    assert answers == [Answer.MISSING, Answer.TOKEN_UNKNOWN, Answer.OK]


async def test_answers_come_in_the_order_of_the_beats(client: RedisClient) -> None:
    """Also beyond one script call."""
    await open_with_token(client)
    batch = [(UID if number % 3 else "none", TOKEN) for number in range(2 * PAGE + 7)]

    answers = await ClientStore(client).beats(batch, GATEWAY)

    expected = [Answer.OK if uid == UID else Answer.MISSING for uid, _ in batch]
    assert answers == expected


async def test_no_beats_need_no_server(client: RedisClient) -> None:
    """An empty tick costs nothing."""
    assert await ClientStore(client).beats([], GATEWAY) == []


@LIFE_SIGNS
async def test_beat_touches_no_deadline(client: RedisClient, verb: Verb) -> None:
    """Deadlines are moved by whoever looks, not 3,333 times a second."""
    await open_with_token(client)
    await client.call("ZADD", keys.DEADLINES, 12345, UID)

    await verb(ClientStore(client), TOKEN)

    assert await score(client) == 12345


@LIFE_SIGNS
@pytest.mark.parametrize(
    ("left", "slides"),
    [(timedelta(minutes=26), False), (timedelta(minutes=24), True), (ZERO, True)],
)
async def test_token_slides_when_little_is_left(
    client: RedisClient, verb: Verb, left: timedelta, slides: bool
) -> None:
    """A token in use never expires, at one write in five minutes."""
    await open_with_token(client)
    before = await now_ms(client) + left // timedelta(milliseconds=1) + 2000
    await client.call("HSET", keys.tokens(UID), TOKEN, before)

    await verb(ClientStore(client), TOKEN)

    assert (await expiry(client) > before) == slides


@LIFE_SIGNS
async def test_token_never_slides_beyond_the_cap(client: RedisClient, verb: Verb) -> None:
    """Whatever a client does, no token outlives its Session."""
    await open_with_token(client)
    cap = await now_ms(client) + 600_000
    await bend(client, cap=cap)
    await client.call("HSET", keys.tokens(UID), TOKEN, cap - 300_000)

    await verb(ClientStore(client), TOKEN)

    assert await expiry(client) == cap


@LIFE_SIGNS
async def test_cap_takes_nothing_from_a_token(client: RedisClient, verb: Verb) -> None:
    """Sliding only ever lengthens."""
    await open_with_token(client)
    soon = await now_ms(client) + 60_000
    await bend(client, cap=soon - 30_000)
    await client.call("HSET", keys.tokens(UID), TOKEN, soon)

    await verb(ClientStore(client), TOKEN)

    assert await expiry(client) == soon


@pytest.mark.parametrize(
    ("ago", "undone"), [(0, False), (500, False), (30_000, True), (-HOUR, True)]
)
async def test_beat_after_a_disconnect_undoes_it(
    client: RedisClient, ago: int, undone: bool
) -> None:
    """Somebody else is alive; just after it, it may be the closed socket's own last beat."""
    await open_with_token(client)
    await bend(client, dc=await now_ms(client) - ago)

    await beat(ClientStore(client))

    assert ((await read_record(client)).dc is None) == undone


async def test_beat_from_the_future_is_now(client: RedisClient) -> None:
    """After the server's clock was moved back, the next beat is as good as any."""
    await open_with_token(client)
    await bend(client, hb=await now_ms(client) + HOUR)

    await beat(ClientStore(client))

    assert int(await client.call("HGET", keys.record(UID), "hb")) <= await now_ms(client)


async def test_wish_to_close_is_written_and_told(client: RedisClient) -> None:
    """It is due at once, safe in the record, and on its way."""
    await open_with_token(client)
    await client.call("ZADD", keys.DEADLINES, FAR, UID)

    await close(ClientStore(client))
    await close(ClientStore(client))

    assert (await read_record(client)).close
    assert (await score(client) or FAR) <= await now_ms(client)
    assert await news(client) == [("close", UID)] * 2
