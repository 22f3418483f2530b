"""Session records in real servers."""

from datetime import UTC, datetime, timedelta

import pytest
from tests.support.records import LIFETIME, UID, open_record, read_record
from tests.support.redis_server import RedisServer

from gpusession.api.session import RecordState
from gpusession.errors import StoreUnavailable
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.sessions import KEEP, SessionStore

FIELDS = {
    *("ns", "name", "user", "node", "state", "cap", "made", "lost"),
    *("hb", "act", "busy", "gpu", "gpuseen", "gpusince", "dc", "doubt", "n", "gw"),
    *("per", "hbt", "first", "idt", "sig", "dcg"),
    *("why", "until", "close", "rev"),
}


async def server_time(client: RedisClient) -> datetime:
    """Read the server's clock, to the millisecond below as the records keep it."""
    seconds, micros = map(int, await client.call("TIME"))
    return datetime.fromtimestamp(seconds, UTC) + timedelta(milliseconds=micros // 1000)


async def test_open_writes_whose_the_session_is(client: RedisClient) -> None:
    """A fresh record is active and names namespace, name, user and node."""
    await open_record(client)

    record = await read_record(client)

    assert (record.ns, record.name, record.user, record.node) == ("ns", "a", "ann", "n1")
    assert record.state is RecordState.ACTIVE


async def test_a_record_that_is_made_anew_in_its_grace_is_pending(client: RedisClient) -> None:
    """At once: nobody may find it active, as if a client had come back."""
    pending = {"state": RecordState.PENDING, "why": "Idle", "grace": timedelta(seconds=60)}
    await open_record(client, **pending)
    made = await read_record(client)
    await open_record(client, **pending | {"grace": timedelta(hours=1)})
    again = await read_record(client)

    assert (made.state, made.why) == (RecordState.PENDING, "Idle")
    assert made.until is not None
    assert made.until - made.hb == timedelta(seconds=60)
    assert (again.state, again.until) == (made.state, made.until)


async def test_a_record_that_is_there_is_not_made_pending(client: RedisClient) -> None:
    """A client has returned by then, and nothing else says so."""
    await open_record(client)
    await open_record(client, state=RecordState.PENDING, why="Idle", grace=timedelta(seconds=60))

    record = await read_record(client)
    assert (record.state, record.why, record.until) == (RecordState.ACTIVE, None, None)


async def test_open_uses_the_time_of_the_server(client: RedisClient) -> None:
    """Beat and activity are the server's now, and the cap lies one lifetime later."""
    before = await server_time(client)
    await open_record(client)
    after = await server_time(client)

    record = await read_record(client)

    assert before <= record.hb == record.act <= after
    assert record.cap - record.hb == LIFETIME


async def test_record_goes_by_itself_a_day_after_its_cap(client: RedisClient) -> None:
    """Nothing stays in Redis for ever, whatever happens to us."""
    await open_record(client)

    record = await read_record(client)
    expires = await client.call("PEXPIRETIME", keys.record(UID))

    assert expires == (record.cap + KEEP).timestamp() * 1000


async def test_fields_are_named_as_the_scripts_name_them(client: RedisClient) -> None:
    """The hash holds exactly the fields of the contract."""
    await open_record(client)

    fields = await client.call("HKEYS", keys.record(UID))

    assert {field.decode() for field in fields} == FIELDS


async def test_session_without_user_has_none(client: RedisClient) -> None:
    """No user is not a user with an empty name."""
    await open_record(client, user=None)

    record = await read_record(client)

    assert record.user is None


async def test_second_open_changes_nothing(client: RedisClient) -> None:
    """A late open takes back no beat and no state; the rest of the lifetime is as it says."""
    await open_record(client)
    key = keys.record(UID)
    await client.call("HSET", key, "hb", 5, "act", 4, "state", "releasing")
    before = await client.call("HGETALL", key)

    await open_record(client, user="bob", node="n2", lifetime=timedelta(hours=1))

    after = await client.call("HGETALL", key)
    assert {k for k in before if after[k] != before[k]} == {b"cap"}


async def test_open_follows_a_lifetime_that_the_spec_changes(client: RedisClient) -> None:
    """Tokens may slide as far as the Session may live; the record and its name last as long."""
    await open_record(client, lifetime=timedelta(hours=1))
    before = await read_record(client)

    await open_record(client, lifetime=timedelta(hours=9))

    record = await read_record(client)
    assert timedelta(hours=8) <= record.cap - before.cap < timedelta(hours=8, minutes=1)
    name = keys.name(record.ns, record.name)
    assert await client.call("PEXPIRETIME", name) == (record.cap + KEEP).timestamp() * 1000


@pytest.mark.parametrize("field", sorted(FIELDS))
async def test_open_repairs_a_missing_field(client: RedisClient, field: str) -> None:
    """A record that lost a field is whole again, the rest as it was."""
    await open_record(client)
    key = keys.record(UID)
    before = await client.call("HGETALL", key)
    await client.call("HDEL", key, field)

    await open_record(client)

    after = await client.call("HGETALL", key)
    # A threshold that was not known begins now; what is left of the lifetime is told anew.
    fresh = {field.encode(), b"first", b"cap"}
    assert after.keys() == before.keys()
    assert {k for k in before if after[k] != before[k]} <= fresh


@pytest.mark.parametrize("field", ["hb", "act", "cap"])
async def test_open_repairs_a_time_that_is_no_number(client: RedisClient, field: str) -> None:
    """A damaged time becomes a fresh one."""
    await open_record(client)
    await client.call("HSET", keys.record(UID), field, "yesterday")

    await open_record(client)

    assert await SessionStore(client).read(UID) is not None


@pytest.mark.parametrize("state", list(RecordState))
async def test_mark_writes_the_state(client: RedisClient, state: RecordState) -> None:
    """The gateway can read how far the end has come."""
    await open_record(client)
    store = SessionStore(client)

    marked = await store.mark(UID, state)

    record = await read_record(client)
    assert (marked, record.state) == (True, state)


async def test_mark_makes_no_record(client: RedisClient) -> None:
    """A mark that comes after the record went leaves no stump that never expires."""
    marked = await SessionStore(client).mark(UID, RecordState.GONE)

    assert (marked, await client.call("EXISTS", keys.record(UID))) == (False, 0)


async def test_mark_keeps_the_expiry(client: RedisClient) -> None:
    """A marked record still goes by itself."""
    await open_record(client)
    before = await client.call("PEXPIRETIME", keys.record(UID))

    await SessionStore(client).mark(UID, RecordState.PENDING)

    assert await client.call("PEXPIRETIME", keys.record(UID)) == before > 0


async def test_forget_may_be_repeated(client: RedisClient) -> None:
    """Forgetting what is forgotten is no error."""
    await open_record(client)
    store = SessionStore(client)

    await store.forget(UID)
    await store.forget(UID)

    assert await store.read(UID) is None


async def test_uids_are_those_of_all_records(client: RedisClient) -> None:
    """Every record is found, over many SCAN steps, and nothing that is no record."""
    written = {f"uid-{number}" for number in range(2500)}
    pairs = [part for uid in written for part in (keys.record(uid), "x")]
    await client.call("MSET", *pairs, "gs:deadlines", "x", "lab:gs:s:foreign", "x")

    assert await SessionStore(client).uids() == written


async def test_no_records_are_no_uids(client: RedisClient) -> None:
    """An empty server holds no record, and says so."""
    assert await SessionStore(client).uids() == set()


async def test_silence_is_not_an_empty_server(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """A server that is down raises: nobody must take its records for lost."""
    own_server.stop()

    with pytest.raises(StoreUnavailable):
        await SessionStore(own_client).uids()


@pytest.mark.parametrize(
    ("field", "value"),
    [("hb", "yesterday"), ("cap", "9" * 40), ("state", "asleep"), ("ns", b"\xff")],
)
async def test_damaged_record_proves_nothing(
    client: RedisClient, field: str, value: str | bytes
) -> None:
    """What cannot be understood is read as no record at all."""
    await open_record(client)
    await client.call("HSET", keys.record(UID), field, value)

    assert await SessionStore(client).read(UID) is None


async def test_wiped_server_gets_its_record_back(client: RedisClient) -> None:
    """After FLUSHALL there is no record, and an open writes it anew."""
    await open_record(client)
    await client.call("FLUSHALL")
    lost = await SessionStore(client).read(UID)

    await open_record(client)

    assert (lost, await SessionStore(client).read(UID) is None) == (None, False)


async def test_silence_is_not_a_missing_record(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """A server that is down raises: None is said only by one that answered."""
    own_server.stop()

    with pytest.raises(StoreUnavailable):
        await SessionStore(own_client).read(UID)


async def test_key_of_another_type_is_unavailable(client: RedisClient) -> None:
    """A string under the record's name is trouble in Redis, not a fresh Session."""
    await client.call("SET", keys.record(UID), "x")

    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await open_record(client)
