"""A Session's state is cleared whole, alone, and only called cleared when it is gone."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from tests.support.redis_server import RedisServer

from gpusession.api.release import StateReport
from gpusession.api.session import Reason, StateKeys
from gpusession.errors import StoreUnavailable
from gpusession.store.clearing import StateClearer
from gpusession.store.client import Argument, RedisClient

NEIGHBOURS = ("ns:ab", "ns:ab:x", "ns:a*x", "ns:a.b:x", "nsx:a:x", "other:a:x", "a:x", "ns:A:x")


async def clear(
    client: RedisClient, state: StateKeys | None, *, name: str = "a", seconds: float = 10
) -> StateReport:
    """Clear the state of Session ns/a."""
    limit = timedelta(seconds=seconds)
    return await StateClearer(client).clear(namespace="ns", name=name, state=state, timeout=limit)


async def put(client: RedisClient, *names: str | bytes) -> None:
    """Write a value under each name."""
    await client.call("MSET", *(part for name in names for part in (name, "v")))


async def left(client: RedisClient) -> set[bytes]:
    """List all keys of the server."""
    return set(await client.call("KEYS", "*"))


def names(*texts: str) -> set[bytes]:
    """Write names as the server lists them."""
    return {text.encode() for text in texts}


async def test_exact_keys_are_removed_and_counted(client: RedisClient) -> None:
    """The report counts keys that were there, not keys that were named."""
    await put(client, "ns:a", "ns:a:1")

    report = await clear(client, StateKeys(keys=("ns:a", "ns:a:1", "ns:a:never")))

    assert (report.cleared, report.reason, report.keys_cleared) == (True, Reason.CLEARED, 2)
    assert await left(client) == set()


async def test_clearing_again_removes_nothing_more(client: RedisClient) -> None:
    """A repeat says cleared, with nothing counted twice."""
    await put(client, "ns:a:1", "ns:a:2")
    await client.call("SADD", "ns:a:index", "ns:a:2")
    state = StateKeys(keys=("ns:a:1",), index_keys=("ns:a:index",), key_prefixes=("ns:a:",))

    first = await clear(client, state)
    second = await clear(client, state)

    assert (first.keys_cleared, second.keys_cleared, second.cleared) == (3, 0, True)


async def test_three_thousand_keys_go_and_the_neighbours_stay(client: RedisClient) -> None:
    """A prefix reaches every key of the Session and none of those that merely look alike."""
    await put(client, *(f"ns:a:chat:{number}" for number in range(3000)), *NEIGHBOURS)

    report = await clear(client, StateKeys(key_prefixes=("ns:a",)))

    assert (report.cleared, report.keys_cleared) == (True, 3000)
    assert await left(client) == names(*NEIGHBOURS)


async def test_bare_name_as_prefix_covers_the_key_of_that_name(client: RedisClient) -> None:
    """`ns:a` covers `ns:a` itself and what continues it with a colon."""
    await put(client, "ns:a", "ns:a:1", "ns:ab")

    await clear(client, StateKeys(key_prefixes=("ns:a",)))

    assert await left(client) == names("ns:ab")


async def test_longer_prefix_leaves_the_rest_of_the_session(client: RedisClient) -> None:
    """Only what the prefixes name goes, several of them in one pass."""
    await put(client, "ns:a:chat:1", "ns:a:kv:1", "ns:a:keep:1")

    await clear(client, StateKeys(key_prefixes=("ns:a:chat:", "ns:a:kv")))

    assert await left(client) == names("ns:a:keep:1")


async def test_all_prefixes_share_one_pass(client: RedisClient) -> None:
    """Ten prefixes cost no more SCAN steps than one."""
    await put(client, *(f"other:{number}" for number in range(5000)))

    await client.call("CONFIG", "RESETSTAT")
    await clear(client, StateKeys(key_prefixes=tuple(f"ns:a:{n}:" for n in range(10))))

    stats = (await client.call("INFO", "commandstats")).decode()
    steps = int(stats.partition("cmdstat_scan:calls=")[2].partition(",")[0])
    assert steps < 10


@pytest.mark.parametrize("name", ["a*", "a?[x]", "a[b-c]", "a\\"])
async def test_glob_characters_in_a_name_match_only_themselves(
    client: RedisClient, name: str
) -> None:
    """A name full of wildcards still finds its own keys, and only those."""
    await put(client, f"ns:{name}:1", "ns:ab:1", "ns:a:1", "ns:abx:1")

    report = await clear(client, StateKeys(key_prefixes=(f"ns:{name}:",)), name=name)

    assert (report.cleared, report.keys_cleared) == (True, 1)
    assert await left(client) == names("ns:ab:1", "ns:a:1", "ns:abx:1")


async def test_wildcard_in_a_prefix_is_a_plain_character(client: RedisClient) -> None:
    """Prefixes are no patterns."""
    await put(client, "ns:a:*:1", "ns:a:b:1")

    await clear(client, StateKeys(key_prefixes=("ns:a:*",)))

    assert await left(client) == names("ns:a:b:1")


async def test_index_leads_to_its_members_and_goes_last(client: RedisClient) -> None:
    """Members and then the SET itself are removed, whatever their number."""
    members = [f"ns:a:m:{number}" for number in range(2500)]
    await put(client, *members)
    await client.call("SADD", "ns:a:index", *members, "ns:a:index", "ns:a:never")

    report = await clear(client, StateKeys(index_keys=("ns:a:index",)))

    assert (report.cleared, report.keys_cleared) == (True, 2501)
    assert await left(client) == set()


async def test_foreign_members_are_left_alone_and_counted(client: RedisClient) -> None:
    """An index cannot be used to remove somebody else's keys."""
    await put(client, "ns:a:1", *NEIGHBOURS)
    await client.call("SADD", "ns:a:index", "ns:a:1", *NEIGHBOURS)

    report = await clear(client, StateKeys(index_keys=("ns:a:index",)))

    assert report.cleared
    assert f"{len(NEIGHBOURS)} index members" in report.message
    assert await left(client) == names(*NEIGHBOURS)


async def test_index_that_is_no_set_is_just_removed(client: RedisClient) -> None:
    """A list or a string under an index key holds no names for us."""
    await client.call("RPUSH", "ns:a:index", "ns:a:1")

    report = await clear(client, StateKeys(index_keys=("ns:a:index",)))

    assert (report.cleared, report.keys_cleared) == (True, 1)


async def test_index_named_by_another_index_is_followed(client: RedisClient) -> None:
    """An index that is also a member, or an exact key, is read before it goes."""
    await put(client, "ns:a:1", "ns:a:2")
    await client.call("SADD", "ns:a:i1", "ns:a:1", "ns:a:i2")
    await client.call("SADD", "ns:a:i2", "ns:a:2", "ns:a:i1")

    await clear(client, StateKeys(keys=("ns:a:i2",), index_keys=("ns:a:i1", "ns:a:i2")))

    assert await left(client) == set()


async def test_members_need_not_be_text(client: RedisClient) -> None:
    """Redis names are bytes, and so are ours."""
    await put(client, b"ns:a:\xff\x00")
    await client.call("SADD", "ns:a:index", b"ns:a:\xff\x00", b"\xfe")

    await clear(client, StateKeys(index_keys=("ns:a:index",)))

    assert await left(client) == set()


@pytest.mark.parametrize(
    "state",
    [
        StateKeys(keys=("ns:a:1", "ns:ab:1")),
        StateKeys(keys=("ns:a:1",), index_keys=("other:index",)),
        StateKeys(keys=("ns:a:1",), key_prefixes=("ns:",)),
        StateKeys(keys=("ns:a:1",), key_prefixes=("",)),
        StateKeys(keys=("ns:a:1",), key_prefixes=("ns:ab",)),
        StateKeys(keys=("ns:a:1",), key_prefixes=("*",)),
    ],
)
async def test_foreign_name_is_refused_before_anything_is_touched(
    client: RedisClient, state: StateKeys
) -> None:
    """One name too many, and even the Session's own keys stay until a human looked."""
    await put(client, "ns:a:1", "ns:ab:1")

    report = await clear(client, state)

    assert (report.cleared, report.reason) == (False, Reason.KEY_REFUSED)
    assert await left(client) == names("ns:a:1", "ns:ab:1")


async def test_refusal_names_the_key_and_the_rule(client: RedisClient) -> None:
    """The message says which name is wrong and which ones are right."""
    report = await clear(client, StateKeys(keys=("ns:ab:1", "x", "y")))

    assert "'ns:ab:1' and 2 more" in report.message
    assert "'ns:a'" in report.message


@pytest.mark.parametrize("state", [None, StateKeys()])
async def test_no_state_needs_no_redis(
    own_server: RedisServer, own_client: RedisClient, state: StateKeys | None
) -> None:
    """A Session without state is not held up by a Redis that is down."""
    own_server.stop()

    report = await clear(own_client, state)

    assert (report.cleared, report.reason) == (True, Reason.NOTHING_TO_CLEAR)


async def test_stopped_server_is_reported(own_server: RedisServer, own_client: RedisClient) -> None:
    """Trouble with Redis is a report, not an exception."""
    own_server.stop()

    report = await clear(own_client, StateKeys(keys=("ns:a:1",)))

    assert (report.cleared, report.reason) == (False, Reason.REDIS_UNAVAILABLE)
    assert report.message


async def test_frozen_server_ends_at_the_time_limit(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """The caller's own limit counts too, and says how long it was."""
    own_server.pause()

    report = await clear(own_client, StateKeys(keys=("ns:a:1",)), seconds=0.1)

    assert (report.cleared, report.reason) == (False, Reason.REDIS_UNAVAILABLE)
    assert "0.1 s" in report.message


async def test_restarted_server_is_cleared_at_the_next_try(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """A restart between two tries costs a try and nothing else."""
    await put(own_client, "ns:a:1")
    await asyncio.to_thread(own_server.stop)
    first = await clear(own_client, StateKeys(key_prefixes=("ns:a",)))
    await asyncio.to_thread(own_server.start)
    await put(own_client, "ns:a:2")

    second = await clear(own_client, StateKeys(key_prefixes=("ns:a",)))

    assert (first.cleared, second.cleared, second.keys_cleared) == (False, True, 1)


class Interfering(RedisClient):
    """A client beside which something happens after each UNLINK."""

    async def happen(self, number: int) -> None:
        """Act after UNLINK number 1, 2, ..."""
        raise NotImplementedError

    async def call(self, *command: Argument) -> Any:
        """Send the command, then interfere if it was an UNLINK."""
        answer = await super().call(*command)
        if command[0] == "UNLINK":
            self.unlinks = getattr(self, "unlinks", 0) + 1
            await self.happen(self.unlinks)
        return answer


class Crashing(Interfering):
    """The connection is lost with the answer to the second UNLINK."""

    async def happen(self, number: int) -> None:
        """Fail at the second."""
        if number == 2:
            raise StoreUnavailable("lost")


class Writing(Interfering):
    """The workload still lives and writes a new key into the index and under the prefix."""

    until = 1_000_000

    async def happen(self, number: int) -> None:
        """Write."""
        if number <= self.until:
            await super().call("SET", f"ns:a:m:{number}", "v")
            await super().call("SADD", "ns:a:index", f"ns:a:m:{number}")


class WritingOnce(Writing):
    """The workload writes one last time."""

    until = 1


class Wiping(Interfering):
    """Somebody empties the server in the middle."""

    async def happen(self, number: int) -> None:
        """Empty the server."""
        await super().call("FLUSHALL", "SYNC" if number else "ASYNC")


@pytest.fixture
async def prepared(client: RedisClient) -> AsyncIterator[RedisClient]:
    """Give a client of a server with an index of 700 members, two batches."""
    members = [f"ns:a:x:{number}" for number in range(700)]
    await put(client, *members, *NEIGHBOURS)
    await client.call("SADD", "ns:a:index", *members)
    return client


INDEXED = StateKeys(index_keys=("ns:a:index",))


async def interfered(kind: type[Interfering], server: RedisServer, state: StateKeys) -> StateReport:
    """Clear through a client of that kind."""
    async with kind(server.url, timeout=timedelta(seconds=5)) as client:
        return await clear(client, state)


async def test_crash_between_members_and_index_loses_no_name(
    server: RedisServer, prepared: RedisClient
) -> None:
    """The index still tells the next try what is left."""
    first = await interfered(Crashing, server, INDEXED)
    between = await left(prepared)

    second = await clear(prepared, INDEXED)

    assert (first.cleared, first.reason) == (False, Reason.REDIS_UNAVAILABLE)
    assert b"ns:a:index" in between
    assert (second.cleared, await left(prepared)) == (True, names(*NEIGHBOURS))


async def test_broken_try_counts_what_it_saw_removed(
    server: RedisServer, prepared: RedisClient
) -> None:
    """One batch was confirmed; the one whose answer was lost is not claimed."""
    assert prepared

    report = await interfered(Crashing, server, INDEXED)

    assert report.keys_cleared == 500


async def test_index_that_still_grows_is_kept(server: RedisServer, prepared: RedisClient) -> None:
    """While names are added the SET is the only trace of them, and nothing is called cleared."""
    report = await interfered(Writing, server, INDEXED)

    assert (report.cleared, report.reason) == (False, Reason.WAITING_FOR_RELEASE)
    assert await prepared.call("SISMEMBER", "ns:a:index", "ns:a:x:0") == 1


async def test_prefix_that_is_still_written_is_not_cleared(
    server: RedisServer, prepared: RedisClient
) -> None:
    """Cleared is said only after a whole pass that found nothing."""
    assert prepared

    report = await interfered(Writing, server, StateKeys(key_prefixes=("ns:a:",)))

    assert (report.cleared, report.reason) == (False, Reason.WAITING_FOR_RELEASE)


async def test_last_write_of_a_dying_workload_is_found(
    server: RedisServer, prepared: RedisClient
) -> None:
    """What is written behind the first pass goes with the second."""
    report = await interfered(WritingOnce, server, StateKeys(key_prefixes=("ns:a:",)))

    assert (report.cleared, await left(prepared)) == (True, names(*NEIGHBOURS))


async def test_exact_key_that_comes_back_is_not_cleared(
    server: RedisServer, prepared: RedisClient
) -> None:
    """Keys are looked for again before the word cleared is used."""
    await put(prepared, "ns:a:m:1", "ns:a:first")

    report = await interfered(WritingOnce, server, StateKeys(keys=("ns:a:m:1", "ns:a:first")))

    assert (report.cleared, report.message[:11]) == (False, "1 keys came")


async def test_wiped_server_is_cleared(server: RedisServer, prepared: RedisClient) -> None:
    """A server emptied in the middle holds nothing of the Session either."""
    report = await interfered(Wiping, server, INDEXED)

    assert (report.cleared, await left(prepared)) == (True, set())


async def test_few_rights_are_enough(server: RedisServer, client: RedisClient) -> None:
    """A user who may only SCAN, TYPE, SSCAN, EXISTS and UNLINK clears all, and tries no more."""
    await put(client, "ns:a:1", "ns:a:2", "ns:a:3", "ns:ab:1")
    await client.call("SADD", "ns:a:index", "ns:a:2")
    rights = ("+scan", "+type", "+sscan", "+exists", "+unlink")
    await client.call("ACL", "SETUSER", "janitor", "reset", "on", ">pw", "~*", "-@all", *rights)
    await client.call("ACL", "LOG", "RESET")
    state = StateKeys(keys=("ns:a:1",), index_keys=("ns:a:index",), key_prefixes=("ns:a:",))

    url = server.url.replace("://", "://janitor:pw@")
    async with RedisClient(url, timeout=timedelta(seconds=5)) as janitor:
        report = await clear(janitor, state)

    refused = await client.call("ACL", "LOG")
    await client.call("ACL", "DELUSER", "janitor")
    assert (report.cleared, report.keys_cleared, refused) == (True, 4, [])


async def test_missing_right_is_reported(server: RedisServer, client: RedisClient) -> None:
    """A user who may not UNLINK leads to a message that names the command."""
    await client.call("ACL", "SETUSER", "looker", "reset", "on", ">pw", "~*", "-@all", "+scan")

    url = server.url.replace("://", "://looker:pw@")
    async with RedisClient(url, timeout=timedelta(seconds=5)) as looker:
        report = await clear(looker, StateKeys(keys=("ns:a:1",)))

    await client.call("ACL", "DELUSER", "looker")
    assert (report.cleared, "'unlink'" in report.message) == (False, True)
