"""Tokens in real servers: which open, for how long, and what puts one back."""

from datetime import timedelta

import pytest
from tests.support.records import (
    FAR,
    GATEWAY,
    OTHER_TOKEN,
    TOKEN,
    UID,
    bend,
    expiry,
    news,
    now_ms,
    open_record,
    open_with_token,
    read_record,
    score,
    watch,
)

from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import TOKEN_LIFE, Answer, ClientStore
from gpusession.store.events import EventBus
from gpusession.store.sessions import KEEP, SessionStore

MINUTE = timedelta(minutes=1)
OVERLAP = 60_000


async def beat(client: RedisClient, token: str = TOKEN, uid: str = UID) -> Answer:
    """Try a token."""
    return (await ClientStore(client).beats([(uid, token)], GATEWAY))[0]


async def heal(client: RedisClient, *, ago: float, left: timedelta = TOKEN_LIFE) -> Answer:
    """Put TOKEN back, as verified so many seconds ago."""
    return await ClientStore(client).heal(
        UID, TOKEN, expires_in=left, verified_ago=timedelta(seconds=ago)
    )


async def test_minted_token_opens_for_its_time(client: RedisClient) -> None:
    """The answer says how long."""
    await open_record(client)

    granted = await ClientStore(client).mint(UID, TOKEN, MINUTE)

    assert (granted.answer, granted.lasts) == (Answer.OK, MINUTE)
    assert await beat(client) is Answer.OK


async def test_minted_token_ends_with_the_cap(client: RedisClient) -> None:
    """No token outlives its Session, and none remains a day after."""
    await open_record(client, lifetime=MINUTE)

    granted = await ClientStore(client).mint(UID, TOKEN, TOKEN_LIFE)

    cap = (await read_record(client)).cap
    assert MINUTE - timedelta(seconds=30) < granted.lasts <= MINUTE
    ends = await client.call("PEXPIRETIME", keys.tokens(UID))
    assert ends == (cap + KEEP).timestamp() * 1000


@pytest.mark.parametrize(
    ("damage", "answer"),
    [
        ({"rev": 1}, Answer.REVOKED),
        ({"state": "releasing"}, Answer.ENDING),
        ({"state": "gone"}, Answer.ENDING),
        ({"cap": "x"}, Answer.MISSING),
    ],
)
async def test_no_token_is_minted_for(
    client: RedisClient, damage: dict[str, str | int], answer: Answer
) -> None:
    """A revoked, ended or damaged Session gets none."""
    await open_record(client)
    await bend(client, **damage)

    granted = await ClientStore(client).mint(UID, TOKEN, TOKEN_LIFE)

    assert (granted.answer, granted.lasts) == (answer, timedelta(0))
    assert await client.call("EXISTS", keys.tokens(UID)) == 0


async def test_expired_tokens_go_with_the_next_grant(client: RedisClient) -> None:
    """The hash holds what opens, not what once did."""
    await open_with_token(client)
    await client.call("HSET", keys.tokens(UID), "old", 5, "rotated", -5, "broken", "x")

    await ClientStore(client).mint(UID, OTHER_TOKEN, TOKEN_LIFE)

    left = await client.call("HKEYS", keys.tokens(UID))
    assert {digest.decode() for digest in left} == {TOKEN, OTHER_TOKEN}


async def test_too_many_tokens_push_out_the_first_to_expire(client: RedisClient) -> None:
    """A loop that mints costs 64 places and not the server's memory."""
    await open_record(client)
    clients = ClientStore(client)
    await clients.mint(UID, TOKEN, MINUTE)

    for number in range(64):
        await clients.mint(UID, f"{number}", TOKEN_LIFE)

    assert await client.call("HLEN", keys.tokens(UID)) == 64
    assert (await beat(client), await beat(client, "63")) == (Answer.TOKEN_UNKNOWN, Answer.OK)


async def test_repeated_grant_pushes_nobody_out(client: RedisClient) -> None:
    """A full house that lets one in who is there already stays as it is."""
    await open_record(client)
    clients = ClientStore(client)
    for number in range(64):
        await clients.mint(UID, f"{number}", TOKEN_LIFE)

    await clients.mint(UID, "5", TOKEN_LIFE)

    assert await client.call("HLEN", keys.tokens(UID)) == 64


async def test_token_opens_no_other_session(client: RedisClient) -> None:
    """A token is good for one uid."""
    await open_with_token(client)
    await open_record(client, uid="other", name="b")

    assert await beat(client, uid="other") is Answer.TOKEN_UNKNOWN


async def test_unknown_token_changes_nothing(client: RedisClient) -> None:
    """A guess is no sign of life."""
    await open_with_token(client)
    before = await client.call("HGETALL", keys.record(UID))

    assert await beat(client, OTHER_TOKEN) is Answer.TOKEN_UNKNOWN
    assert await client.call("HGETALL", keys.record(UID)) == before


async def test_expired_token_changes_nothing(client: RedisClient) -> None:
    """An expired token neither beats nor slides."""
    await open_with_token(client)
    await client.call("HSET", keys.tokens(UID), TOKEN, await now_ms(client) - 1)

    assert await beat(client) is Answer.TOKEN_EXPIRED
    assert (await read_record(client)).n == 0


async def test_refresh_gives_a_new_token(client: RedisClient) -> None:
    """The new one has a whole life, and opens."""
    await open_with_token(client)

    granted = await ClientStore(client).refresh(UID, TOKEN, OTHER_TOKEN)

    assert (granted.answer, granted.lasts) == (Answer.OK, TOKEN_LIFE)
    assert await beat(client, OTHER_TOKEN) is Answer.OK


async def test_refresh_tells_which_token_goes(client: RedisClient) -> None:
    """Gateways that had verified it must not put it back for good."""
    await open_with_token(client)

    await ClientStore(client).refresh(UID, TOKEN, OTHER_TOKEN)

    assert await news(client) == [("rotated", UID)]
    event = await anext(EventBus(client).follow("0-0"))
    assert event.fields == {"digest": TOKEN}


async def test_rotated_token_opens_for_a_minute(client: RedisClient) -> None:
    """What is under way with the old one still arrives, and does not slide."""
    await open_with_token(client)
    await ClientStore(client).refresh(UID, TOKEN, OTHER_TOKEN)
    before = await expiry(client)

    assert await beat(client) is Answer.OK
    assert await expiry(client) == before
    assert -before - await now_ms(client) == pytest.approx(OVERLAP, abs=5000)


async def test_rotated_token_is_over_after_that(client: RedisClient) -> None:
    """A stolen old token is worth a minute."""
    await open_with_token(client)
    await ClientStore(client).refresh(UID, TOKEN, OTHER_TOKEN)
    await client.call("HSET", keys.tokens(UID), TOKEN, -(await now_ms(client) - 1))

    assert await beat(client) is Answer.TOKEN_EXPIRED


async def test_repeated_refresh_lengthens_nothing_old(client: RedisClient) -> None:
    """A client that asks again gets its answer, and the old token its first end."""
    await open_with_token(client)
    clients = ClientStore(client)
    await clients.refresh(UID, TOKEN, OTHER_TOKEN)
    before = await expiry(client)
    await client.call("HSET", keys.tokens(UID), TOKEN, before + 20_000)

    again = await clients.refresh(UID, TOKEN, OTHER_TOKEN)

    assert (again.answer, await expiry(client)) == (Answer.OK, before + 20_000)
    assert await client.call("HLEN", keys.tokens(UID)) == 2


async def test_refreshed_token_ends_with_the_cap(client: RedisClient) -> None:
    """Rotation is no way around the longest lifetime."""
    await open_with_token(client)
    cap = await now_ms(client) + 60_000
    await bend(client, cap=cap)

    await ClientStore(client).refresh(UID, TOKEN, OTHER_TOKEN)

    assert await expiry(client, OTHER_TOKEN) == cap


async def test_revoked_session_opens_to_nobody(client: RedisClient) -> None:
    """Tokens are gone, the record says why, it is due at once, and all are told."""
    await open_with_token(client)
    await client.call("ZADD", keys.DEADLINES, FAR, UID)

    done = await SessionStore(client).revoke(UID)

    assert (done, await beat(client)) == (True, Answer.REVOKED)
    assert await client.call("EXISTS", keys.tokens(UID)) == 0
    assert (await score(client) or FAR) <= await now_ms(client)
    assert await news(client) == [("revoked", UID)]


async def test_revoke_may_come_from_a_gateway_and_twice(client: RedisClient) -> None:
    """Both sides run the same script, and again is no harm."""
    await open_with_token(client)

    first, second = await ClientStore(client).revoke(UID), await SessionStore(client).revoke(UID)

    assert (first, second, (await read_record(client)).rev) == (True, True, True)


async def test_revoke_makes_no_record(client: RedisClient) -> None:
    """Tokens without a record go, and nothing comes in their place."""
    await client.call("HSET", keys.tokens(UID), TOKEN, FAR)

    assert not await SessionStore(client).revoke(UID)
    assert await client.call("KEYS", "*") == []


async def test_revoked_pending_end_is_not_called_off(client: RedisClient) -> None:
    """A client that lost its right cannot return."""
    await open_with_token(client)
    await bend(client, state="pending", why="HeartbeatLost")
    await SessionStore(client).revoke(UID)

    assert await beat(client) is Answer.REVOKED
    assert (await read_record(client)).state == "pending"


async def test_lost_token_is_put_back_into_a_new_record(client: RedisClient) -> None:
    """After FLUSHALL the record comes from etcd and the token from who had verified it."""
    await open_with_token(client)
    await client.call("FLUSHALL")
    await open_record(client)

    assert await heal(client, ago=60) is Answer.OK
    assert await beat(client) is Answer.OK


async def test_token_is_not_put_back_into_an_old_record(client: RedisClient) -> None:
    """Where record and server are older than the verification, the token was taken."""
    await watch(client, lost=await now_ms(client) - 60_000)
    await open_record(client)
    await bend(client, made=await now_ms(client) - 60_000)

    assert await heal(client, ago=30) is Answer.TOKEN_UNKNOWN
    assert await client.call("EXISTS", keys.tokens(UID)) == 0


@pytest.mark.parametrize(
    ("damage", "answer"),
    [({"rev": 1}, Answer.REVOKED), ({"state": "gone"}, Answer.TOKEN_UNKNOWN)],
)
async def test_token_is_not_put_back_for_nothing(
    client: RedisClient, damage: dict[str, str | int], answer: Answer
) -> None:
    """A revoked Session stays closed, and an old record refuses whatever its state."""
    await watch(client)
    await open_record(client)
    await bend(client, made=5, **damage)

    assert await heal(client, ago=60) is answer


async def test_revoked_after_the_loss_is_not_healed(client: RedisClient) -> None:
    """A record made anew and then revoked takes no token back."""
    await open_record(client)
    await SessionStore(client).revoke(UID)

    assert await heal(client, ago=60) is Answer.REVOKED
    assert await client.call("EXISTS", keys.tokens(UID)) == 0


async def test_heal_makes_no_record(client: RedisClient) -> None:
    """Until the controller has made one, there is nothing to put a token into."""
    assert await heal(client, ago=60) is Answer.MISSING
    assert await client.call("KEYS", "*") == []


async def test_heal_leaves_a_known_token_alone(client: RedisClient) -> None:
    """Twice is no harm, and what was rotated away stays so."""
    await open_with_token(client)
    await client.call("HSET", keys.tokens(UID), TOKEN, -5)

    assert await heal(client, ago=60) is Answer.TOKEN_EXPIRED
    assert await expiry(client) == -5


async def test_heal_outlives_a_jump_of_the_clock(client: RedisClient) -> None:
    """The gateway that asks has verified it within its half hour, by its own clock."""
    await open_with_token(client)
    await client.call("HSET", keys.tokens(UID), TOKEN, 5)

    assert await heal(client, ago=60, left=timedelta(minutes=10)) is Answer.OK
    assert await expiry(client) - await now_ms(client) == pytest.approx(600_000, abs=5000)


@pytest.mark.parametrize(
    ("left", "answer", "slides"),
    [
        (timedelta(0), Answer.TOKEN_UNKNOWN, None),
        (timedelta(seconds=59), Answer.OK, False),
        (timedelta(minutes=10), Answer.OK, True),
        (timedelta(days=9), Answer.OK, True),
    ],
)
async def test_healed_token_lasts_no_longer_than_it_did(
    client: RedisClient, left: timedelta, answer: Answer, slides: bool | None
) -> None:
    """One in its last minute may be a rotated one: it comes back as such."""
    await open_record(client)

    assert await heal(client, ago=60, left=left) is answer
    if slides is not None:
        stored = await expiry(client)
        assert (stored > 0) == slides
        life = abs(stored) - await now_ms(client)
        assert life == pytest.approx(min(left, TOKEN_LIFE).total_seconds() * 1000, abs=5000)
