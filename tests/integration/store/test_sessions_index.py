"""What leads to a record beside its uid, what a spec asks to be watched, and GPU reports."""

from datetime import timedelta

import pytest
from tests.support.records import (
    FAR,
    UID,
    bend,
    liveness,
    moment,
    news,
    now_ms,
    open_record,
    read_record,
    score,
)

from gpusession.api.session import RecordState
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import ClientStore
from gpusession.store.events import EventBus, EventKind
from gpusession.store.sessions import PAGE, SessionStore

DAYS = timedelta(days=3)


async def test_session_is_found_by_its_name(client: RedisClient) -> None:
    """Under its namespace only."""
    await open_record(client)
    clients = ClientStore(client)

    assert (await clients.find("ns", "a"), await clients.find("other", "a")) == (UID, None)


async def test_newer_session_takes_the_name(client: RedisClient) -> None:
    """And an open of the old one, late, takes nothing back."""
    await open_record(client)
    await open_record(client, uid="new")

    await open_record(client)

    assert await ClientStore(client).find("ns", "a") == "new"


async def test_lost_name_comes_back_with_the_next_open(client: RedisClient) -> None:
    """Evicted entries are made good."""
    await open_record(client)
    await client.call("DEL", keys.name("ns", "a"), keys.user("ann"))

    await open_record(client)

    assert await ClientStore(client).find("ns", "a") == UID
    assert await ClientStore(client).of_user("ann", None) == [UID]


async def test_index_entries_expire_with_the_record(client: RedisClient) -> None:
    """Nothing stays for ever."""
    await open_record(client)

    ends = await client.call("PEXPIRETIME", keys.record(UID))

    assert await client.call("PEXPIRETIME", keys.name("ns", "a")) == ends
    assert await client.call("PEXPIRETIME", keys.user("ann")) == ends


async def test_user_entry_lasts_as_long_as_the_longest_session(client: RedisClient) -> None:
    """A short Session does not cut it short."""
    await open_record(client, uid="long", name="b", lifetime=DAYS)
    ends = await client.call("PEXPIRETIME", keys.record("long"))

    await open_record(client)

    assert await client.call("PEXPIRETIME", keys.user("ann")) == ends


async def test_sessions_of_a_user_are_listed(client: RedisClient) -> None:
    """In one namespace or in all, and nobody else's."""
    await open_record(client, uid="1", name="a")
    await open_record(client, uid="2", name="b", namespace="lab")
    await open_record(client, uid="3", name="c", user="bob")
    await open_record(client, uid="4", name="d", user=None)
    clients = ClientStore(client)

    assert await clients.of_user("ann", None) == ["1", "2"]
    assert await clients.of_user("ann", "lab") == ["2"]
    assert await clients.of_user("carl", None) == []


async def test_many_sessions_of_a_user_are_listed(client: RedisClient) -> None:
    """Over many steps, and those without a record are dropped on the way."""
    for number in range(3):
        await open_record(client, uid=f"live-{number}", name=str(number))
    await client.call("SADD", keys.user("ann"), *(f"dead-{n}" for n in range(5 * PAGE)))

    found = await ClientStore(client).of_user("ann", None)

    assert found == ["live-0", "live-1", "live-2"]
    assert await client.call("SCARD", keys.user("ann")) == 3


async def test_nobody_enters_another_users_list(client: RedisClient) -> None:
    """Whose a record is, the first open says."""
    await open_record(client)

    await open_record(client, user="bob")

    assert await client.call("EXISTS", keys.user("bob")) == 0


async def test_strange_entry_is_not_listed(client: RedisClient) -> None:
    """The record says whose it is, whatever the list of uids says."""
    await open_record(client)
    await client.call("SADD", keys.user("bob"), UID)

    assert await ClientStore(client).of_user("bob", None) == []


async def test_open_asks_for_a_look(client: RedisClient) -> None:
    """A record that nobody looks at would never end."""
    await open_record(client)

    assert (await score(client) or FAR) <= await now_ms(client)


async def test_open_takes_over_the_spec(client: RedisClient) -> None:
    """What is asked for may change; what was heard stays."""
    await open_record(client)
    before = await read_record(client)

    await open_record(
        client,
        liveness=liveness(
            idle_timeout=timedelta(0), signals=(), disconnect_grace=timedelta(seconds=1)
        ),
    )

    after = await read_record(client)
    assert (after.idt, after.sig, after.dcg) == (timedelta(0), (), timedelta(seconds=1))
    assert (after.hb, after.act, after.first) == (before.hb, before.act, before.first)


@pytest.mark.parametrize("field", ["heartbeat_period", "heartbeat_threshold"])
async def test_changed_heartbeat_begins_with_a_whole_threshold(
    client: RedisClient, field: str
) -> None:
    """Nothing that was silent under the old rule is judged by the new one."""
    await open_record(client)
    await bend(client, first=5)
    changed = liveness(**{field: timedelta(seconds=40)})

    await open_record(client, liveness=changed)

    grace = changed.initial_delay + changed.heartbeat_threshold
    first = (await read_record(client)).first
    assert abs(first - moment(await now_ms(client)) - grace) < timedelta(seconds=5)


async def test_changed_heartbeat_is_told_once(client: RedisClient) -> None:
    """A client that nobody tells would keep the old one, and be lost by the new."""
    await open_record(client)
    before = await EventBus(client).newest()

    for _ in range(2):
        await open_record(client, liveness=liveness(heartbeat_period=timedelta(seconds=5)))

    event = await anext(EventBus(client).follow(before))
    assert (event.kind, event.uid, event.fields) == (
        EventKind.HEARTBEAT,
        UID,
        {"per": "5000"},
    )
    assert await EventBus(client).newest() == event.id


async def test_heartbeat_that_is_new_or_the_same_is_told_nobody(client: RedisClient) -> None:
    """Not when a record is made or opened again, or for what a client does not plan by."""
    await open_record(client)
    await open_record(client)
    await open_record(client, liveness=liveness(initial_delay=timedelta(seconds=5)))
    await open_record(client, liveness=liveness(heartbeat_threshold=timedelta(seconds=40)))

    assert await news(client) == []


async def test_record_may_be_rebuilt_in_a_later_state(client: RedisClient) -> None:
    """After a loss a Session whose end has begun is not opened as Active."""
    await open_record(client, state=RecordState.RELEASING)

    assert (await read_record(client)).state is RecordState.RELEASING


async def test_rebuilt_record_is_younger(client: RedisClient) -> None:
    """By that a gateway knows that Redis has lost its token; a mere repair leaves it."""
    await open_record(client)
    await bend(client, made=5)
    await open_record(client)
    repaired = await read_record(client)
    await client.call("FLUSHALL")
    await open_record(client)

    assert (repaired.made, (await read_record(client)).made > moment(5)) == (moment(5), True)


async def test_look_comes_with_the_time_of_the_server(client: RedisClient) -> None:
    """The times of the record are compared with no other clock."""
    await open_record(client)
    before = moment(await now_ms(client))

    sighting = await SessionStore(client).read(UID)

    assert sighting is not None
    assert before <= sighting.now <= moment(await now_ms(client))


@pytest.mark.parametrize(
    "field", ["hb", "act", "gpu", "gpuseen", "gpusince", "dc", "doubt", "made"]
)
async def test_nobody_sees_a_future_past(client: RedisClient, field: str) -> None:
    """After the clock was moved back, what has happened has happened by now."""
    await open_record(client)
    await bend(client, **{field: FAR})

    sighting = await SessionStore(client).read(UID)

    assert sighting is not None
    assert getattr(sighting.record, field) == sighting.now


async def test_report_of_a_busy_gpu_is_noted(client: RedisClient) -> None:
    """With its time; and a claim for idleness from before it looks again."""
    await open_record(client)

    noted = await SessionStore(client).note_usage([(UID, True)])

    record = await read_record(client)
    assert (noted, record.n) == (1, 1)
    assert record.gpu == record.gpuseen == record.gpusince
    assert record.gpu is not None


async def test_report_of_a_quiet_gpu_is_noted(client: RedisClient) -> None:
    """It says that somebody looked, and moves no counter."""
    await open_record(client)

    await SessionStore(client).note_usage([(UID, False)])

    record = await read_record(client)
    assert (record.gpu, record.n) == (None, 0)
    assert record.gpuseen == record.gpusince is not None


@pytest.mark.parametrize(("silent", "kept"), [(170_000, True), (190_000, False)])
async def test_gap_begins_the_row_of_reports_anew(
    client: RedisClient, silent: int, kept: bool
) -> None:
    """Three missed reports, and nobody knows what the GPU did in between."""
    await open_record(client)
    now = await now_ms(client)
    await bend(client, gpuseen=now - silent, gpusince=now - 3_600_000)

    await SessionStore(client).note_usage([(UID, False)])

    since = (await read_record(client)).gpusince
    assert (since == moment(now - 3_600_000)) == kept


async def test_reports_make_no_record(client: RedisClient) -> None:
    """Sessions that are gone stay gone, in a batch of any size."""
    await open_record(client)
    reports = [(str(number), True) for number in range(2 * PAGE)]

    assert await SessionStore(client).note_usage([*reports, (UID, True)]) == 1
    assert await SessionStore(client).uids() == {UID}
