"""How a record's end is claimed, taken back, marked and forgotten, in real servers."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from tests.support.records import (
    FAR,
    GATEWAY,
    TOKEN,
    UID,
    bend,
    moment,
    news,
    now_ms,
    open_record,
    open_with_token,
    read_record,
    score,
)

from gpusession.api.session import Reason, RecordState
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import Answer, ClientStore
from gpusession.store.pulse import Pulse
from gpusession.store.sessions import Claim, Proof, SessionStore

GRACE = timedelta(seconds=20)
LOST = Reason.HEARTBEAT_LOST
PENDING, RELEASING = RecordState.PENDING, RecordState.RELEASING


async def claim(client: RedisClient, to: RecordState, counter: int | None = 0) -> Claim:
    """Claim the record of the tests for silence, by a watch that is unbroken."""
    watch = (await Pulse(client).tick()).proof
    return await SessionStore(client).claim(
        UID, to=to, why=LOST, grace=GRACE, counter=counter, watch=watch
    )


@pytest.mark.parametrize(
    "proof",
    [
        pytest.param(lambda tick: Proof(tick.number + 1, tick.writer), id="an older copy"),
        pytest.param(lambda tick: Proof(tick.number, "another"), id="another leader's"),
    ],
)
async def test_claim_is_refused_by_a_server_that_forgot_the_watch(
    client: RedisClient, proof: Callable[[Proof], Proof]
) -> None:
    """What was judged is not what this server has."""
    await open_record(client)
    watch = proof((await Pulse(client).tick()).proof)

    answer = await SessionStore(client).claim(
        UID, to=RELEASING, why=LOST, grace=GRACE, counter=0, watch=watch
    )

    assert answer is Claim.REWOUND
    assert (await read_record(client)).state is RecordState.ACTIVE


async def test_claim_on_a_wiped_server_is_refused(client: RedisClient) -> None:
    """It knows no tick at all."""
    watch = (await Pulse(client).tick()).proof
    await client.call("FLUSHALL")
    await open_record(client)

    answer = await SessionStore(client).claim(
        UID, to=RELEASING, why=LOST, grace=GRACE, counter=None, watch=watch
    )

    assert answer is Claim.REWOUND


async def test_end_that_waits_is_written_and_told(client: RedisClient) -> None:
    """Reason and time limit stand in the record, in the deadlines and in the event."""
    await open_record(client)

    won = await claim(client, PENDING)

    record = await read_record(client)
    assert (won, record.state, record.why) == (Claim.WON, PENDING, LOST)
    assert record.until is not None
    until = record.until.timestamp() * 1000
    assert until - await now_ms(client) == pytest.approx(20_000, abs=5000)
    assert await score(client) == until
    assert (await client.call("XRANGE", keys.EVENTS, "-", "+"))[0][1][4:] == [
        *(b"why", LOST.encode(), b"until", str(int(until)).encode())
    ]


@pytest.mark.parametrize("state", ["active", "pending"])
async def test_release_is_claimed(client: RedisClient, state: str) -> None:
    """From Active at once, or after a grace in which nobody came."""
    await open_record(client)
    await bend(client, state=state)

    won = await claim(client, RELEASING)

    record = await read_record(client)
    assert (won, record.state, record.why) == (Claim.WON, RELEASING, LOST)
    assert await news(client) == [("ending", UID)]


@pytest.mark.parametrize("to", [PENDING, RELEASING])
async def test_claim_loses_against_a_beat(client: RedisClient, to: RecordState) -> None:
    """Heard between the look and the claim: nothing is written, nothing told."""
    await open_with_token(client)
    await ClientStore(client).beats([(UID, TOKEN)], GATEWAY)

    assert await claim(client, to, counter=0) is Claim.RETURNED
    assert (await read_record(client)).state is RecordState.ACTIVE
    assert await news(client) == []


@pytest.mark.parametrize("to", [PENDING, RELEASING])
async def test_claim_without_counter_asks_for_no_silence(
    client: RedisClient, to: RecordState
) -> None:
    """A wish or the cap passes whatever was heard."""
    await open_with_token(client)
    await ClientStore(client).beats([(UID, TOKEN)], GATEWAY)

    assert await claim(client, to, counter=None) is Claim.WON


async def test_pending_needs_no_counter(client: RedisClient) -> None:
    """Beats that call nothing off do not keep a pending end from going on."""
    await open_record(client)
    await bend(client, state="pending", n=7)

    assert await claim(client, RELEASING, counter=0) is Claim.WON


@pytest.mark.parametrize(
    ("state", "to"),
    [
        ("pending", PENDING),
        ("releasing", PENDING),
        ("releasing", RELEASING),
        ("gone", PENDING),
        ("gone", RELEASING),
    ],
)
async def test_claim_may_be_repeated(client: RedisClient, state: str, to: RecordState) -> None:
    """What is there already is won, with another counter too, and changes nothing."""
    await open_record(client)
    await bend(client, state=state, why="Idle", until=FAR, n=7)
    before = await client.call("HGETALL", keys.record(UID))

    assert await claim(client, to) is Claim.WON
    assert await client.call("HGETALL", keys.record(UID)) == before
    assert await news(client) == []


@pytest.mark.parametrize("to", [PENDING, RELEASING])
async def test_claim_makes_no_record(client: RedisClient, to: RecordState) -> None:
    """What Redis lost is no evidence."""
    assert await claim(client, to) is Claim.MISSING
    assert await client.call("KEYS", "*") == [keys.TICK.encode()]


@pytest.mark.parametrize("damage", [{"state": "asleep"}, {"n": "x"}])
async def test_damaged_record_is_not_claimed(client: RedisClient, damage: dict[str, str]) -> None:
    """Nor is what cannot be understood."""
    await open_record(client)
    await bend(client, **damage)

    assert await claim(client, RELEASING) is Claim.MISSING


async def test_claimed_release_stays_in_sight(client: RedisClient) -> None:
    """If whoever claimed it dies, a sweep brings it again; a lease that runs is kept."""
    await open_record(client)
    await client.call("ZREM", keys.DEADLINES, UID)

    await claim(client, RELEASING)

    assert (await score(client) or 0) - await now_ms(client) == pytest.approx(30_000, abs=5000)


async def test_claim_keeps_a_running_lease(client: RedisClient) -> None:
    """The one who was told it is due has its 30 s."""
    await open_record(client)
    await client.call("ZADD", keys.DEADLINES, 12345, UID)

    await claim(client, RELEASING)

    assert await score(client) == 12345


@pytest.mark.parametrize("state", ["pending", "releasing"])
async def test_reopened_session_is_as_new(client: RedisClient, state: str) -> None:
    """Just heard, just used, nobody gone, and watched again at once."""
    await open_record(client)
    await bend(client, state=state, why=LOST, until=FAR, hb=5, act=5, dc=5)
    await client.call("ZADD", keys.DEADLINES, FAR, UID)

    done = await SessionStore(client).reopen(UID)

    record = await read_record(client)
    assert (done, record.state, record.why, record.until) == (True, RecordState.ACTIVE, None, None)
    assert (record.dc, record.n, record.hb == record.act > moment(5)) == (None, 1, True)
    assert (await score(client) or FAR) <= await now_ms(client)
    assert await news(client) == [("restored", UID)]


async def test_reopen_of_an_active_session_changes_nothing(client: RedisClient) -> None:
    """Twice is no harm."""
    await open_record(client)
    before = await client.call("HGETALL", keys.record(UID))

    assert await SessionStore(client).reopen(UID)
    assert await client.call("HGETALL", keys.record(UID)) == before
    assert await news(client) == []


async def test_what_is_gone_stays_gone(client: RedisClient) -> None:
    """Nothing comes back after the release."""
    await open_record(client)
    await bend(client, state="gone")

    assert not await SessionStore(client).reopen(UID)
    assert (await read_record(client)).state is RecordState.GONE


async def test_reopen_makes_no_record(client: RedisClient) -> None:
    """Only open does."""
    assert not await SessionStore(client).reopen(UID)
    assert await client.call("KEYS", "*") == []


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (RecordState.ACTIVE, []),
        (RecordState.PENDING, []),
        (RecordState.RELEASING, [("ending", UID)]),
        (RecordState.GONE, [("ending", UID)]),
    ],
)
async def test_marked_end_is_told_once(
    client: RedisClient, state: RecordState, told: list[tuple[str, str]]
) -> None:
    """A repeat is no news."""
    await open_record(client)
    store = SessionStore(client)

    await store.mark(UID, state)
    await store.mark(UID, state)

    assert await news(client) == told


async def test_mark_tells_the_reason_it_finds(client: RedisClient) -> None:
    """The reason of the claim goes along."""
    await open_record(client)
    await bend(client, state="pending", why="Idle")

    await SessionStore(client).mark(UID, RecordState.GONE)

    assert (await client.call("XRANGE", keys.EVENTS, "-", "+"))[0][1][4:] == [b"why", b"Idle"]


async def test_forgotten_session_leaves_nothing(client: RedisClient) -> None:
    """Record, tokens, name, user's entry and deadline go, and all are told."""
    await open_with_token(client)
    await client.call("DEL", keys.GATEWAYS, keys.ANNOUNCED)

    await SessionStore(client).forget(UID)

    assert await client.call("KEYS", "*") == [keys.EVENTS.encode()]
    assert await news(client) == [("gone", UID)]


async def test_forget_spares_the_successor_of_the_name(client: RedisClient) -> None:
    """A Session of the same name that came meanwhile stays to be found."""
    await open_record(client)
    await open_record(client, uid="new")

    await SessionStore(client).forget(UID)

    assert await ClientStore(client).find("ns", "a") == "new"
    assert await ClientStore(client).of_user("ann", None) == ["new"]


async def test_forgetting_twice_is_told_once(client: RedisClient) -> None:
    """The second time there is nothing to tell."""
    await open_record(client)

    await SessionStore(client).forget(UID)
    await SessionStore(client).forget(UID)

    assert await news(client) == [("gone", UID)]


async def test_damaged_record_is_forgotten_too(client: RedisClient) -> None:
    """Without its names the other entries wait for their expiry."""
    await open_record(client)
    await client.call("HDEL", keys.record(UID), "ns")

    await SessionStore(client).forget(UID)

    assert await client.call("EXISTS", keys.record(UID), keys.DEADLINES) == 0


async def test_forgotten_session_answers_missing(client: RedisClient) -> None:
    """A client that is late makes nothing of it."""
    await open_with_token(client)
    await SessionStore(client).forget(UID)

    assert await ClientStore(client).beats([(UID, TOKEN)], GATEWAY) == [Answer.MISSING]
    assert await client.call("EXISTS", keys.record(UID)) == 0
