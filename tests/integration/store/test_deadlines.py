"""What is due when, and why, in real servers."""

from datetime import timedelta
from typing import Any

import pytest
from tests.support.records import (
    FAR,
    GATEWAY,
    TOKEN,
    UID,
    bend,
    liveness,
    moment,
    now_ms,
    open_record,
    open_with_token,
    read_record,
    score,
)

from gpusession.api.session import Reason
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import ClientStore
from gpusession.store.deadlines import (
    CLAIM,
    PAGE,
    RECALLED_AT_ONCE,
    DeadlineStore,
    Due,
    DueKind,
)
from gpusession.store.sessions import SessionStore

HOUR = 3_600_000
LEASE = 30_000
NO_TIME = timedelta(0)


async def due(client: RedisClient, limit: int = 500) -> list[tuple[DueKind, str]]:
    """List kind and reason of what is due."""
    return [(found.kind, found.why) for found in await DeadlineStore(client).due(limit)]


async def set_ago(client: RedisClient, **ago: int) -> None:
    """Write times of the record, as so many milliseconds ago."""
    now = await now_ms(client)
    await bend(client, **{field: now - value for field, value in ago.items()})


async def look_again(client: RedisClient) -> None:
    """Have the record looked at with the next call."""
    await client.call("ZADD", keys.DEADLINES, 1, UID)


async def next_look(client: RedisClient) -> float:
    """Read in how many milliseconds the record is looked at."""
    return (await score(client) or 0) - await now_ms(client)


async def test_what_is_due_says_whom_to_ask(client: RedisClient) -> None:
    """Uid, reason, node and gateway are all that a brake needs."""
    await open_record(client)
    await bend(client, close=1, gw=GATEWAY)

    found = await DeadlineStore(client).due()

    kind, why = DueKind.DUE, Reason.EXPLICIT_CLOSE
    assert found == [Due(uid=UID, kind=kind, why=why, node="n1", gateway=GATEWAY)]


async def test_fresh_session_is_not_due(client: RedisClient) -> None:
    """It is looked at once after its opening, and then when its first beat is late."""
    await open_record(client)

    assert await due(client) == []
    # late a period and a quarter after the delay of 60 s
    assert await next_look(client) == pytest.approx(97_500, abs=5000)


PASSED: list[tuple[dict[str, int], dict[str, int], Reason]] = [
    ({"hb": 90_000, "first": 1}, {}, Reason.HEARTBEAT_LOST),
    ({"dc": 90_000}, {}, Reason.DISCONNECTED),
    ({"act": HOUR // 2, "busy": HOUR // 2, "gpu": HOUR // 2}, {}, Reason.IDLE),
    ({"cap": 0}, {}, Reason.LIFETIME_EXCEEDED),
    ({}, {"close": 1}, Reason.EXPLICIT_CLOSE),
    ({}, {"rev": 1}, Reason.REVOKED),
]


@pytest.mark.parametrize(("times", "flags", "why"), PASSED, ids=[why for *_, why in PASSED])
async def test_passed_deadline_is_due_for_its_reason(
    client: RedisClient, times: dict[str, int], flags: dict[str, int], why: Reason
) -> None:
    """At the very millisecond, and leased for half a minute."""
    await open_record(client)
    await set_ago(client, **times)
    await bend(client, n=0, **flags)

    assert await due(client) == [(DueKind.DUE, why)]
    assert await next_look(client) == pytest.approx(LEASE, abs=5000)
    assert await due(client) == []


@pytest.mark.parametrize("number", range(1, len(PASSED)))
async def test_stronger_reason_is_told(client: RedisClient, number: int) -> None:
    """Of several the one that leaves least doubt."""
    strength = [Reason.IDLE, Reason.HEARTBEAT_LOST, Reason.DISCONNECTED]
    strength += [Reason.LIFETIME_EXCEEDED, Reason.EXPLICIT_CLOSE, Reason.REVOKED]
    await open_record(client)
    for times, flags, why in PASSED:
        if why in strength[: number + 1]:
            await set_ago(client, **times)
            await bend(client, n=0, **flags)

    assert await due(client) == [(DueKind.DUE, strength[number])]


async def test_leased_record_comes_again(client: RedisClient) -> None:
    """Whoever took it and died costs half a minute."""
    await open_record(client)
    await bend(client, close=1)
    await due(client)
    await look_again(client)

    assert await due(client) == [(DueKind.DUE, Reason.EXPLICIT_CLOSE)]


NOT_YET: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("no heartbeat is expected", {"heartbeat_threshold": NO_TIME}, {"hb": HOUR, "first": HOUR}),
    ("no idle timeout is asked for", {"idle_timeout": NO_TIME}, {"act": 5 * HOUR}),
    ("the first minute is not over", {}, {"hb": HOUR, "first": -5000}),
    ("the GPU was busy", {}, {"act": HOUR, "gpu": 60_000}),
    ("the client said that it is busy", {}, {"act": HOUR, "busy": -60_000}),
    ("the busy lease ended just now", {}, {"act": HOUR, "busy": 60_000}),
]


@pytest.mark.parametrize(
    ("asked", "times"), [case[1:] for case in NOT_YET], ids=[case[0] for case in NOT_YET]
)
async def test_not_due_where(
    client: RedisClient, asked: dict[str, Any], times: dict[str, int]
) -> None:
    """Silence alone ends nothing."""
    await open_record(client, liveness=liveness(**asked))
    await set_ago(client, **times)

    assert [why for kind, why in await due(client) if kind is DueKind.DUE] == []
    assert await next_look(client) > 0


async def test_gpu_does_not_count_unless_asked_for(client: RedisClient) -> None:
    """With signals [Client] a busy GPU keeps nobody."""
    await open_record(client, liveness=liveness(signals=("Client",)))
    await set_ago(client, act=HOUR, gpu=60_000)

    assert await due(client) == [(DueKind.DUE, Reason.IDLE)]


async def test_late_beat_is_told(client: RedisClient) -> None:
    """A quarter after its period the brake hears of it."""
    await open_record(client)
    await set_ago(client, hb=38_000, first=HOUR)

    assert await due(client) == [(DueKind.LATE, "")]


@pytest.mark.parametrize(("silent", "again"), [(38_000, 30_000), (70_000, 20_000)], ids=str)
async def test_late_beat_is_told_again_until_it_is_lost(
    client: RedisClient, silent: int, again: int
) -> None:
    """Once per lease, since a brake remembers it for its window only; then at the deadline."""
    await open_record(client)
    await set_ago(client, hb=silent, first=HOUR)

    await due(client)

    assert await next_look(client) == pytest.approx(again, abs=5000)


async def test_beat_that_is_not_late_is_silent(client: RedisClient) -> None:
    """Just before that, nothing is told, and the next look is when it would be late."""
    slow = {
        "heartbeat_period": timedelta(seconds=100),
        "heartbeat_threshold": timedelta(seconds=300),
    }
    await open_record(client, liveness=liveness(**slow))
    await set_ago(client, hb=117_000, first=HOUR)

    assert await due(client) == []
    assert 0 < await next_look(client) <= 8000


async def test_nothing_is_late_before_a_client_could_have_started(
    client: RedisClient,
) -> None:
    """A client that is still starting is not missed yet."""
    await open_record(client)
    await set_ago(client, hb=HOUR, first=-65_000)

    assert await due(client) == []
    assert await next_look(client) == pytest.approx(12_500, abs=5000)


async def test_seen_disconnect_is_told_before_its_grace(client: RedisClient) -> None:
    """The brake counts those who went; the next look is when the grace is over."""
    await open_record(client)
    await set_ago(client, dc=70_000)

    assert await due(client) == [(DueKind.LATE, "")]
    assert await next_look(client) == pytest.approx(20_000, abs=5000)


async def test_beat_without_a_deadline_is_not_due(client: RedisClient) -> None:
    """The old deadline passes, the look finds the beat, and puts the next look off."""
    await open_with_token(client)
    await set_ago(client, hb=HOUR, first=HOUR)
    await ClientStore(client).beats([(UID, TOKEN)], GATEWAY)

    assert await due(client) == []
    assert await next_look(client) == pytest.approx(37_500, abs=5000)


async def test_cap_comes_before_everything(client: RedisClient) -> None:
    """The next look is never later than the end of the longest lifetime."""
    await open_record(client, lifetime=timedelta(seconds=20))

    assert await due(client) == []
    assert await next_look(client) == pytest.approx(20_000, abs=5000)


async def test_changed_spec_moves_the_deadline_sooner(client: RedisClient) -> None:
    """An idle timeout of a minute counts from the next sweep."""
    await open_record(client)
    await set_ago(client, act=120_000)
    await due(client)

    await open_record(client, liveness=liveness(idle_timeout=timedelta(minutes=1)))

    assert await due(client) == [(DueKind.DUE, Reason.IDLE)]


async def test_changed_heartbeat_begins_anew(client: RedisClient) -> None:
    """Nobody can have kept a period that is new."""
    await open_record(client)
    await set_ago(client, hb=60_000, first=HOUR)
    short = {
        "heartbeat_period": timedelta(seconds=5),
        "heartbeat_threshold": timedelta(seconds=15),
        "initial_delay": timedelta(seconds=10),
    }

    await open_record(client, liveness=liveness(**short))

    assert await due(client) == []
    assert 0 < await next_look(client) <= 25_000


@pytest.mark.parametrize("state", ["pending", "releasing", "gone"])
async def test_begun_end_must_go_on(client: RedisClient, state: str) -> None:
    """Whatever its times say: it is claimed."""
    await open_record(client)
    await set_ago(client, until=1, hb=HOUR, first=HOUR)
    await bend(client, state=state)

    assert await due(client) == [(DueKind.DUE, CLAIM)]


async def test_pending_end_waits_for_its_grace(client: RedisClient) -> None:
    """Until then it is nobody's business."""
    await open_record(client)
    await set_ago(client, until=-60_000, hb=HOUR, first=HOUR)
    await bend(client, state="pending", rev=1)

    assert await due(client) == []
    assert await next_look(client) == pytest.approx(60_000, abs=5000)


async def test_lost_record_is_missing(client: RedisClient) -> None:
    """A uid without a record is leased until somebody makes one, or forgets it."""
    await look_again(client)

    found = await DeadlineStore(client).due()

    assert found == [Due(uid=UID, kind=DueKind.MISSING, why="", node="", gateway="")]
    assert await next_look(client) == pytest.approx(LEASE, abs=5000)


@pytest.mark.parametrize("field", ["hb", "cap", "state", "dcg"])
async def test_damaged_record_is_missing(client: RedisClient, field: str) -> None:
    """What is not whole proves nothing, however old its other times are."""
    await open_record(client)
    await bend(client, close=1)
    await client.call("HDEL", keys.record(UID), field)

    assert await due(client) == [(DueKind.MISSING, "")]


async def test_key_of_another_type_is_missing(client: RedisClient) -> None:
    """One broken key does not hold up the sweep."""
    await open_record(client, uid="b", name="b")
    await client.call("SET", keys.record(UID), "x")
    await look_again(client)

    assert await due(client) == [(DueKind.MISSING, "")]


@pytest.mark.parametrize(
    "field", ["hb", "act", "gpu", "dc", "made", "doubt", "gpuseen", "gpusince", "lost"]
)
async def test_time_from_the_future_counts_from_now(client: RedisClient, field: str) -> None:
    """The server's clock was moved back: nobody lives, or waits, an hour longer for it."""
    await open_record(client)
    await set_ago(client, **{field: -HOUR})

    await due(client)

    assert int(await client.call("HGET", keys.record(UID), field)) <= await now_ms(client)


@pytest.mark.parametrize("field", ["first", "busy", "until"])
async def test_what_comes_after_the_future_comes_sooner(client: RedisClient, field: str) -> None:
    """By as much as the clock was moved back: a grace or a delay is no hour longer."""
    await open_record(client)
    await set_ago(client, hb=-HOUR, **{field: -HOUR - 5000})

    await due(client)

    left = int(await client.call("HGET", keys.record(UID), field)) - await now_ms(client)
    assert 4000 < left <= 5000


async def test_recalled_records_are_looked_at_now(client: RedisClient) -> None:
    """The server's clock was moved back: nobody would have looked for an hour."""
    await fill(client, RECALLED_AT_ONCE // 200, close=1)
    await client.call("ZADD", keys.DEADLINES, FAR, "0", FAR, "1")

    await DeadlineStore(client).recall()

    assert [why for _, why in await due(client)].count(Reason.EXPLICIT_CLOSE) == 5


async def test_recall_goes_on_over_many_pages(client: RedisClient) -> None:
    """And adds nobody."""
    count = 2 * RECALLED_AT_ONCE + 5
    pairs = [part for number in range(count) for part in (FAR, f"s-{number}")]
    await client.call("ZADD", keys.DEADLINES, *pairs)

    await DeadlineStore(client).recall()

    waiting = await client.call("ZCOUNT", keys.DEADLINES, await now_ms(client) + 1, "+inf")
    assert (waiting, await client.call("ZCARD", keys.DEADLINES)) == (0, count)


async def test_recall_cuts_a_lease_from_another_clock(client: RedisClient) -> None:
    """A gateway that died before the clock was moved back must not count as living for an hour."""
    far = await now_ms(client) + HOUR
    await client.call("ZADD", keys.GATEWAYS, far, "dead", far - HOUR + 9000, "alive")

    await DeadlineStore(client).recall()

    now = await now_ms(client)
    ends = [float(await client.call("ZSCORE", keys.GATEWAYS, name)) for name in ("dead", "alive")]
    assert [round((end - now) / 1000) for end in ends] == [60, 9]


async def test_empty_server_has_nothing_due(client: RedisClient) -> None:
    """After FLUSHALL nothing is overdue."""
    await open_record(client)
    await bend(client, close=1)
    await client.call("FLUSHALL")

    assert (await due(client), await client.call("KEYS", "*")) == ([], [])


async def fill(client: RedisClient, count: int, **fields: int) -> None:
    """Open so many records."""
    for number in range(count):
        await open_record(client, uid=str(number), name=str(number))
        if fields:
            await bend(client, str(number), **fields)


async def test_many_are_taken_page_by_page(client: RedisClient) -> None:
    """One call goes on over pages of silent looks to what lies behind them."""
    await fill(client, PAGE + 50)
    await open_record(client, uid="last", name="last")
    await bend(client, "last", close=1)
    await client.call("ZADD", keys.DEADLINES, await now_ms(client), "last")

    assert await due(client) == [(DueKind.DUE, Reason.EXPLICIT_CLOSE)]


async def test_limit_leaves_the_rest_for_the_next_call(client: RedisClient) -> None:
    """What was not taken is still due, and nothing is taken twice."""
    await fill(client, 12, close=1)
    store = DeadlineStore(client)

    sizes = [len(await store.due(5)) for _ in range(4)]

    assert sizes == [5, 5, 2, 0]


async def test_postponed_record_is_looked_at_then(client: RedisClient) -> None:
    """What a brake holds comes again when it said."""
    await open_record(client)
    await bend(client, close=1)

    await DeadlineStore(client).postpone({UID: moment(FAR)})

    assert (await due(client), await score(client)) == ([], FAR)


async def test_postpone_adds_nobody(client: RedisClient) -> None:
    """A Session that was forgotten meanwhile does not come back."""
    await open_record(client)
    await SessionStore(client).forget(UID)

    await DeadlineStore(client).postpone({UID: moment(FAR)})

    assert await client.call("EXISTS", keys.DEADLINES) == 0


async def test_look_writes_no_beat(client: RedisClient) -> None:
    """Looking at a record leaves it as it is."""
    await open_record(client)
    before = await read_record(client)

    await due(client)

    assert await read_record(client) == before
