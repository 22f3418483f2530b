"""The Redis client against real servers that vanish, freeze, forget and refuse."""

import asyncio
import random
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from tests.support.redis_server import RedisServer

from gpusession.errors import Misconfigured, StoreUnavailable
from gpusession.store.client import RedisClient

LIMIT = timedelta(seconds=0.2)


async def test_ping_returns_when_the_server_answers(client: RedisClient) -> None:
    """A healthy server needs no more than a return."""
    await client.ping()


async def test_answers_are_bytes(client: RedisClient) -> None:
    """A value that is no text comes back as it was stored."""
    await client.call("SET", "k", b"\xff\x00")

    assert await client.call("GET", "k") == b"\xff\x00"


async def test_stopped_server_is_unavailable(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """Nobody listening is StoreUnavailable, and the library's own error is its cause."""
    own_server.stop()

    with pytest.raises(StoreUnavailable) as raised:
        await own_client.ping()
    assert type(raised.value.__cause__).__module__.startswith("redis.")


async def test_server_lost_between_two_calls_is_unavailable(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """A connection that was good does not hide that the server is gone."""
    await own_client.ping()
    own_server.kill()

    with pytest.raises(StoreUnavailable):
        await own_client.ping()


async def test_restarted_server_answers_again(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """The client needs no restart of its own."""
    await own_client.ping()
    await asyncio.to_thread(own_server.stop)
    await asyncio.to_thread(own_server.start)

    await own_client.ping()


async def test_frozen_server_is_unavailable(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """A server that holds the connection and says nothing ends at the time limit."""
    await own_client.ping()
    own_server.pause()

    with pytest.raises(StoreUnavailable, match=r"no answer within 0\.2 s"):
        await own_client.ping()


async def test_frozen_server_is_unavailable_for_a_new_connection(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """The limit covers the handshake, which a frozen server's kernel still lets begin."""
    own_server.pause()

    with pytest.raises(StoreUnavailable, match=r"no answer within 0\.2 s"):
        await own_client.ping()


async def test_one_command_takes_one_limit(own_server: RedisServer) -> None:
    """A caller that need not queue is not kept for the time that a queue may take."""
    async with RedisClient(own_server.url, timeout=timedelta(seconds=0.5)) as client:
        own_server.pause()

        async with asyncio.timeout(0.9):
            with pytest.raises(StoreUnavailable):
                await client.ping()
        own_server.resume()


async def test_waiting_for_a_permit_ends_too(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """Thirty callers of a frozen server give up after two limits each, not after thirty."""
    own_server.pause()

    async with asyncio.timeout(30 * LIMIT.total_seconds() / 2):
        pings = (own_client.ping() for _ in range(30))
        outcomes = await asyncio.gather(*pings, return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}


async def test_late_answer_never_meets_the_next_command(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """A command that timed out cannot leave its answer to another."""
    await own_client.ping()
    own_server.pause()
    with pytest.raises(StoreUnavailable):
        await own_client.call("ECHO", "late")
    own_server.resume()

    answers = [await own_client.call("ECHO", str(number)) for number in range(20)]

    assert answers == [str(number).encode() for number in range(20)]


async def test_cancelled_command_leaves_no_answer_behind(
    own_server: RedisServer, own_client: RedisClient
) -> None:
    """A call cancelled in flight cannot leave its answer to the next one."""
    await own_client.ping()
    own_server.pause()
    task = asyncio.create_task(own_client.call("ECHO", "cancelled"))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    next_call = asyncio.create_task(own_client.call("ECHO", "next"))
    await asyncio.sleep(0.05)
    own_server.resume()

    assert (task.cancelled(), await next_call) == (True, b"next")


async def test_answers_stay_right_under_random_cancellation(server: RedisServer) -> None:
    """Whoever is not cancelled gets the answer to the own question, and no permit is lost."""
    chance = random.Random(7)  # noqa: S311 - a seed, not a secret
    async with RedisClient(server.url, timeout=timedelta(seconds=5), connections=4) as client:
        tasks = [asyncio.create_task(client.call("ECHO", str(n))) for n in range(2000)]
        while not all(task.done() for task in tasks):
            chance.choice(tasks).cancel()
            await asyncio.sleep(0)

        answers = {n: task.result() for n, task in enumerate(tasks) if not task.cancelled()}
        assert len(answers) < 2000
        assert answers == {n: str(n).encode() for n in answers}
        await asyncio.gather(*(client.ping() for _ in range(8)))


@pytest.mark.timeout(60)  # it computes all the time, three seconds on a core of its own
async def test_two_hundred_callers_are_served_in_turn(server: RedisServer) -> None:
    """When 20,000 answers are given, no caller is more than two behind another."""
    given = [0] * 200

    async def caller(number: int, client: RedisClient) -> None:
        while sum(given) < 20_000:
            await client.ping()
            given[number] += 1

    async with RedisClient(server.url, timeout=timedelta(seconds=15)) as client:
        await asyncio.gather(*(caller(number, client) for number in range(200)))

    assert max(given) - min(given) <= 2


async def test_script_is_loaded_when_the_server_forgot_it(client: RedisClient) -> None:
    """After SCRIPT FLUSH, as after a restart, the script still runs."""
    await client.run("mark", keys=["gs:s:none"], args=["gone"])
    await client.call("SCRIPT", "FLUSH")

    assert await client.run("mark", keys=["gs:s:none"], args=["gone"]) == 0


async def test_script_is_sent_once(client: RedisClient) -> None:
    """The text crosses the wire only when the server does not know it."""
    await client.call("SCRIPT", "FLUSH")
    await client.call("CONFIG", "RESETSTAT")

    for _ in range(5):
        await client.run("mark", keys=["gs:s:none"], args=["gone"])

    calls = (await client.call("INFO", "commandstats")).decode()
    assert "cmdstat_eval:calls=1," in calls
    assert "cmdstat_evalsha:calls=5," in calls


@asynccontextmanager
async def refusing(line: str) -> AsyncIterator[str]:
    """Give the URL of a server that lets everyone in and answers each command with a line."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while sent := await reader.read(65536):
            writer.write(b"%1\r\n+proto\r\n:3\r\n" if b"HELLO" in sent else f"-{line}\r\n".encode())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    "line",
    [
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "MISCONF Errors writing to the AOF file: No space left on device",
        "CLUSTERDOWN The cluster is down",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "NOREPLICAS Not enough good replicas to write.",
        "BUSY Redis is busy running a script.",
        "MOVED 3999 127.0.0.1:6381",
    ],
    ids=lambda line: line.split()[0],
)
async def test_server_that_cannot_serve_is_unavailable(line: str) -> None:
    """A server in trouble is no reason to believe anything about a Session."""
    async with refusing(line) as url, RedisClient(url, timeout=LIMIT) as client:
        with pytest.raises(StoreUnavailable):
            await client.call("SET", "k", "v")


async def test_demoted_server_is_left(own_client: RedisClient) -> None:
    """After READONLY the next call connects anew: the address may lead to the new master."""
    before = await own_client.call("CLIENT", "ID")
    await own_client.call("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreUnavailable):
        await own_client.call("SET", "k", "v")

    assert await own_client.call("CLIENT", "ID") != before


async def _wrong_password(url: str) -> None:
    async with RedisClient(url, timeout=LIMIT) as client:
        await client.ping()


async def _unreadable_port(url: str) -> None:
    RedisClient(url.replace("@", "/@"), timeout=LIMIT)


@pytest.mark.parametrize("attempt", [_wrong_password, _unreadable_port])
async def test_password_never_shows_in_an_error(
    server: RedisServer, attempt: Callable[[str], Awaitable[None]]
) -> None:
    """Neither a refused login nor a broken URL quotes what is secret, down to the cause."""
    url = server.url.replace("://", "://nobody:hunter2@")

    with pytest.raises((StoreUnavailable, Misconfigured)) as raised:
        await attempt(url)

    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


async def test_refused_login_says_what_to_check(server: RedisServer) -> None:
    """A wrong password is told apart from a server that is down."""
    url = server.url.replace("://", "://nobody:hunter2@")

    async with RedisClient(url, timeout=LIMIT) as client:
        with pytest.raises(StoreUnavailable, match="check user and password"):
            await client.ping()


@pytest.mark.parametrize("url", ["http://host", "redis://h:99x", "redis://h?colour=red", "", "//"])
def test_broken_url_stops_the_process(url: str) -> None:
    """A URL that no client can use is a fault of the set-up, not of the server."""
    with pytest.raises(Misconfigured, match=r"redis\[s\]://"):
        RedisClient(url, timeout=LIMIT)


async def test_closed_client_leaves_no_connection(server: RedisServer, client: RedisClient) -> None:
    """After the with block the server sees only other clients."""
    before = await client.call("CLIENT", "LIST")

    async with RedisClient(server.url, timeout=timedelta(seconds=5)) as other:
        await asyncio.gather(*(other.ping() for _ in range(50)))

    after = await client.call("CLIENT", "LIST")
    assert after.count(b"\n") == before.count(b"\n")
