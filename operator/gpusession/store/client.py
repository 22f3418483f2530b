"""The way to one Redis server: permits, time limits, scripts, and one kind of error.

Nobody above `store` sees redis-py, its exceptions or the URL, which may hold a password.
It retries nothing: whoever calls knows whether to repeat, and when.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cache
from importlib.resources import files
from typing import Any, Self

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoScriptError, ReadOnlyError, RedisError
from redis.maint_notifications import MaintNotificationsConfig

from gpusession.errors import Misconfigured, StoreUnavailable

Argument = bytes | str | int

CONNECTIONS = 8
"""Eight gave 21,100 GET/s on two cores, six times the beats of 100,000 sessions."""

PATIENCE = 2
"""Time limits that a call may take in all: one in the queue, one with the server."""


_INCLUDE = re.compile(r"^-- include (\w+)$", re.MULTILINE)
"""The line of a script that stands for scripts/parts/<name>.lua."""


class RedisClient:
    """Connections to one server, handed to waiting callers strictly in turn.

    A plain pool behind a FIFO semaphore, never BlockingConnectionPool: with 200 tasks on
    8 connections that one gave a task between 1 and 4,983 answers and let one wait 2.6 s,
    which would look like a missed heartbeat. In turn it is 199 to 201, and 14 ms.

    A call may be cancelled at any point. Answers are bytes: tenants' keys need not be text.
    """

    def __init__(self, url: str, *, timeout: timedelta, connections: int = CONNECTIONS) -> None:
        self._seconds = timeout.total_seconds()
        self._pool = pool(url, timeout=self._seconds, connections=connections)
        self._permits = asyncio.Semaphore(connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    @property
    def timeout(self) -> timedelta:
        """How long the server may take over one command."""
        return timedelta(seconds=self._seconds)

    async def ping(self) -> None:
        """Return if the server answers; raises StoreUnavailable if it does not."""
        await self.call("PING")

    async def call(self, *command: Argument) -> Any:
        """Send one command and return its answer as RESP3 gives it.

        Raises StoreUnavailable: the command may or may not have been carried out.
        """
        async with self._connection() as connection:
            return await _exchange(connection, *command)

    async def run(self, script: str, *, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run scripts/<script>.lua; the server forgets scripts when it restarts.

        Raises StoreUnavailable: the script ran as a whole or not at all.
        """
        digest, text = _script(script)
        operands = (len(keys), *keys, *args)
        async with self._connection() as connection:
            try:
                return await _exchange(connection, "EVALSHA", digest, *operands)
            except NoScriptError:
                return await _exchange(connection, "EVAL", text, *operands)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AbstractConnection]:
        whole = self._seconds * PATIENCE
        try:
            async with asyncio.timeout(whole), self._permits, asyncio.timeout(self._seconds):
                connection = await self._pool.get_connection()
                try:
                    yield connection
                finally:
                    await self._pool.release(connection)
        except RedisError as error:
            raise StoreUnavailable(_said(error)) from error
        except TimeoutError as error:
            raise StoreUnavailable(f"Redis gave no answer within {self._seconds:g} s") from error


async def _exchange(connection: AbstractConnection, *command: Argument) -> Any:
    """Send and read. What cuts either short, a cancellation too, closes the connection.

    redis-py 8 sees to that. An open one would hand its late answer to whoever
    sends the next command (redis/redis-py#2665).
    """
    try:
        # redis-py's own way to pack takes 10 us for each beat that a gateway's call carries.
        packed = hiredis.pack_command(command)  # type: ignore[arg-type] # its stub: one element
        await connection.send_packed_command(packed)
        return await connection.read_response()
    except ReadOnlyError:
        # The address may lead to another server by now; this socket still leads to a replica.
        await connection.disconnect()
        raise


def pool(url: str, *, timeout: float, connections: int) -> ConnectionPool:
    """Make connections that try once and say little; raises Misconfigured for a bad URL."""
    options: dict[str, Any] = {
        "max_connections": connections,
        "decode_responses": False,
        "protocol": 3,
        # Our own limit covers handshake, sending and reading. redis-py's would send through
        # asyncio.wait_for, which swallows a cancellation on Python 3.11.
        "socket_timeout": None,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        # A user who may only clear would be refused CLIENT SETINFO: a line in the ACL log each.
        "driver_info": None,
        # With them on, the pool hands out a connection that the server has closed.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    try:
        made = ConnectionPool(**{**parse_url(url), **options})
        made.make_connection()
    except (TypeError, ValueError, RedisError):
        # Without the cause: Python quotes the part that it cannot read, maybe a password.
        raise Misconfigured(
            "the Redis URL cannot be read: give redis[s]://[user:password@]host[:port][/db], "
            "special characters in user and password percent-encoded"
        ) from None
    return made


@cache
def _script(name: str) -> tuple[str, str]:
    """Give digest and text of a script, with what it shares with others in place."""
    text = _INCLUDE.sub(lambda line: _lua("parts", line[1]), _lua(name))
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text


def _lua(*path: str) -> str:
    *folders, name = path
    script = files("gpusession.store").joinpath("scripts", *folders, f"{name}.lua")
    return script.read_text("utf-8")


def _said(error: RedisError) -> str:
    if isinstance(error, AuthenticationError):
        return "Redis refused the login: check user and password of the Redis URL"
    return f"Redis gave no usable answer: {error}"
