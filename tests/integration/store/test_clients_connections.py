"""Connections in real servers: who is still there, and what counts as seen to go."""

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

from gpusession.api.session import RecordState
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import TOKEN_LIFE, Answer, ClientStore
from gpusession.store.gateways import GatewayRegistry

LEASE = timedelta(seconds=10)


@pytest.fixture
async def clients(client: RedisClient) -> ClientStore:
    """Give the store with one open record and two living gateways."""
    await open_with_token(client)
    await GatewayRegistry(client).announce("gw-b", LEASE)
    return ClientStore(client)


async def connect(clients: ClientStore, *gateways: str) -> None:
    """Open one connection at each, from number 1 on."""
    for place, gateway in enumerate(gateways):
        number = str(gateways[: place + 1].count(gateway))
        assert (await clients.connect(UID, TOKEN, gateway, number))[0] is Answer.OK


async def test_welcome_tells_what_a_client_needs(clients: ClientStore) -> None:
    """Whose Session it is, how often to beat, and how long the token lasts."""
    _, welcome = await clients.connect(UID, TOKEN, GATEWAY, "1")

    assert welcome is not None
    assert (welcome.ns, welcome.name, welcome.state) == ("ns", "a", RecordState.ACTIVE)
    assert welcome.per == timedelta(seconds=30)
    assert TOKEN_LIFE - timedelta(seconds=9) < welcome.token_lasts <= TOKEN_LIFE
    assert (welcome.why, welcome.until) == (None, None)


async def test_welcome_tells_of_an_end_that_waits(
    client: RedisClient, clients: ClientStore
) -> None:
    """A client that connects while its Session is pending learns why, and until when."""
    await bend(client, state="pending", why="Idle", until=FAR)

    _, welcome = await clients.connect(UID, TOKEN, GATEWAY, "1")

    assert welcome is not None
    assert (welcome.state, welcome.why) == (RecordState.PENDING, "Idle")
    assert welcome.until == moment(FAR)


async def test_welcome_of_a_returned_session_is_active(
    client: RedisClient, clients: ClientStore
) -> None:
    """What the connection itself called off is not announced as waiting."""
    await bend(client, state="pending", why="Disconnected", until=FAR)

    answer, welcome = await clients.connect(UID, TOKEN, GATEWAY, "1")

    assert welcome is not None
    assert (answer, welcome.state, welcome.until) == (
        Answer.RETURNED,
        RecordState.ACTIVE,
        None,
    )


async def test_refused_connection_is_not_counted(client: RedisClient, clients: ClientStore) -> None:
    """No welcome, no count."""
    answer, welcome = await clients.connect(UID, "guess", GATEWAY, "1")

    assert (answer, welcome) == (Answer.TOKEN_UNKNOWN, None)
    assert (await read_record(client)).connections == {}
    assert await client.call("EXISTS", keys.gateway(GATEWAY)) == 0


async def test_connections_are_counted_by_gateway(
    client: RedisClient, clients: ClientStore
) -> None:
    """Each gateway has its own count, and knows whom it holds."""
    await connect(clients, GATEWAY, GATEWAY, "gw-b")

    assert (await read_record(client)).connections == {GATEWAY: 2, "gw-b": 1}
    assert await client.call("SMEMBERS", keys.gateway(GATEWAY)) == [UID.encode()]
    assert await client.call("PTTL", keys.gateway(GATEWAY)) > 0


async def test_connection_undoes_a_disconnect(client: RedisClient, clients: ClientStore) -> None:
    """Even one a moment old."""
    await bend(client, dc=await now_ms(client))

    await connect(clients, GATEWAY)

    assert (await read_record(client)).dc is None


async def test_last_client_is_seen_to_go(client: RedisClient, clients: ClientStore) -> None:
    """The record says when, it is looked at at once, and the controller is told."""
    await connect(clients, GATEWAY)
    await client.call("ZADD", keys.DEADLINES, FAR, UID)

    answer = await clients.disconnect(UID, GATEWAY, "1", evidence=True)

    record = await read_record(client)
    assert (answer, record.dc is not None, record.connections) == (Answer.OK, True, {})
    assert (await score(client) or FAR) <= await now_ms(client)
    assert await news(client) == [("disconnected", UID)]
    assert await client.call("EXISTS", keys.gateway(GATEWAY)) == 0


@pytest.mark.parametrize("others", [(GATEWAY,), ("gw-b",), (GATEWAY, "gw-b")])
async def test_nobody_has_gone_while_one_is_left(
    client: RedisClient, clients: ClientStore, others: tuple[str, ...]
) -> None:
    """One more socket, here or at another gateway, and nothing is due."""
    await connect(clients, GATEWAY, *others)

    await clients.disconnect(UID, GATEWAY, "1", evidence=True)

    assert (await read_record(client)).dc is None
    assert await news(client) == []
    noted = await client.call("SISMEMBER", keys.gateway(GATEWAY), UID)
    assert bool(noted) is (GATEWAY in others)  # what is taken back should the gateway die


async def test_last_of_two_gateways_ends_it(client: RedisClient, clients: ClientStore) -> None:
    """Whichever comes last sees nobody left."""
    await connect(clients, GATEWAY, "gw-b")

    await clients.disconnect(UID, "gw-b", "1", evidence=True)
    await clients.disconnect(UID, GATEWAY, "1", evidence=True)

    assert (await read_record(client)).dc is not None
    assert await news(client) == [("disconnected", UID)]


async def lapse_lease(client: RedisClient, gateway: str) -> None:
    """Let a lease run out."""
    await client.call("ZADD", keys.GATEWAYS, 5, gateway)


async def drain(_: RedisClient, clients: ClientStore) -> None:
    """Close because the gateway stops."""
    await clients.disconnect(UID, GATEWAY, "1", evidence=False)


async def report_cut_off(client: RedisClient, clients: ClientStore) -> None:
    """Report from a gateway whose lease is over."""
    await lapse_lease(client, GATEWAY)
    await clients.disconnect(UID, GATEWAY, "1", evidence=True)


async def report_unknown_gateway(client: RedisClient, clients: ClientStore) -> None:
    """Report from a gateway that never had a lease, or lost it with everything else."""
    await client.call("DEL", keys.GATEWAYS)
    await clients.disconnect(UID, GATEWAY, "1", evidence=True)


async def report_uncounted(client: RedisClient, clients: ClientStore) -> None:
    """Report the end of a connection that the record does not know."""
    await client.call("HDEL", keys.record(UID), f"c:{GATEWAY}:1")
    await clients.disconnect(UID, GATEWAY, "1", evidence=True)


async def report_beside_a_dead_gateway(client: RedisClient, clients: ClientStore) -> None:
    """Report the last one, but for one at a gateway that died: it may be on its way here."""
    await connect(clients, "gw-b")
    await lapse_lease(client, "gw-b")
    await clients.disconnect(UID, GATEWAY, "1", evidence=True)


@pytest.mark.parametrize(
    "happens",
    [
        drain,
        report_cut_off,
        report_unknown_gateway,
        report_uncounted,
        report_beside_a_dead_gateway,
    ],
)
async def test_what_is_no_evidence_gives_a_fresh_threshold(
    client: RedisClient, clients: ClientStore, happens: object
) -> None:
    """The Session counts as just heard, and nobody is told that it was left."""
    await connect(clients, GATEWAY)
    await bend(client, hb=5)

    await happens(client, clients)  # type: ignore[operator]

    record = await read_record(client)
    assert (record.dc, record.hb > moment(5)) == (None, True)
    assert await news(client) == []


@pytest.mark.parametrize("state", ["pending", "releasing", "gone"])
async def test_disconnect_of_an_ending_session_is_only_counted(
    client: RedisClient, clients: ClientStore, state: str
) -> None:
    """Its end has a reason already."""
    await connect(clients, GATEWAY)
    await bend(client, state=state)

    await clients.disconnect(UID, GATEWAY, "1", evidence=True)

    record = await read_record(client)
    assert (record.dc, record.connections) == (None, {})


async def test_disconnect_moves_the_counter(client: RedisClient, clients: ClientStore) -> None:
    """A claim from before it looks again."""
    await connect(clients, GATEWAY)

    await clients.disconnect(UID, GATEWAY, "1", evidence=True)

    assert (await read_record(client)).n == 2


@pytest.mark.parametrize("other", [GATEWAY, "gw-b"])
async def test_repeated_disconnect_takes_no_other_connection_away(
    client: RedisClient, clients: ClientStore, other: str
) -> None:
    """A report that came twice is one: who is still there is still counted."""
    await connect(clients, GATEWAY, other)
    await clients.disconnect(UID, GATEWAY, "1", evidence=True)

    await clients.disconnect(UID, GATEWAY, "1", evidence=True)

    record = await read_record(client)
    assert (record.connections, record.dc) == ({other: 1}, None)


async def test_repeated_disconnect_of_the_last_one_stands(
    client: RedisClient, clients: ClientStore
) -> None:
    """It is no sign of life, which would undo what the first one told."""
    await connect(clients, GATEWAY)
    await bend(client, hb=5)
    await clients.disconnect(UID, GATEWAY, "1", evidence=True)

    await clients.disconnect(UID, GATEWAY, "1", evidence=True)

    record = await read_record(client)
    assert (record.dc is not None, record.hb) == (True, moment(5))
    assert await news(client) == [("disconnected", UID)]


async def test_repeated_connect_counts_once(client: RedisClient, clients: ClientStore) -> None:
    """A gateway that got no answer asks again."""
    await connect(clients, GATEWAY)
    await connect(clients, GATEWAY)

    assert (await read_record(client)).connections == {GATEWAY: 1}


async def test_disconnect_makes_no_record(client: RedisClient, clients: ClientStore) -> None:
    """After a loss only the gateway's own note of the uid is tidied."""
    await client.call("FLUSHALL")
    await client.call("SADD", keys.gateway(GATEWAY), UID)

    assert await clients.disconnect(UID, GATEWAY, "1", evidence=True) is Answer.MISSING
    assert await client.call("KEYS", "*") == []


async def test_sockets_that_outlive_a_loss_are_no_evidence(
    client: RedisClient, clients: ClientStore
) -> None:
    """Redis lost the counts of two open sockets; the end of one does not end the Session."""
    await connect(clients, GATEWAY, GATEWAY)
    await client.call("FLUSHALL")
    await open_record(client)
    await GatewayRegistry(client).announce(GATEWAY, LEASE)

    await clients.disconnect(UID, GATEWAY, "1", evidence=True)

    assert (await read_record(client)).dc is None
