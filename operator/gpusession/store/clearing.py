"""Removes a Session's own state from the tenants' Redis, and proves that it is gone.

Agent and controller call it. It needs SCAN, TYPE, SSCAN, EXISTS and UNLINK and no other
right, reads no value, and never touches a key that is not the Session's own.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from itertools import islice

from gpusession.api.release import StateReport
from gpusession.api.session import Reason, StateKeys
from gpusession.errors import KeyRefused, StoreUnavailable
from gpusession.store import keys
from gpusession.store.client import Argument, RedisClient

SCAN_COUNT = 1000
"""Names looked at per SCAN step: 0.3 ms of the server's one thread, measured."""

BATCH = 500
"""Keys per UNLINK or EXISTS: 0.1 ms of the server's one thread, measured."""

PASSES = 3
"""A pass misses what is written behind it: one removes, one takes the last words of a
dying workload, and the one that finds nothing is the proof. More would chase a living one."""


class StateClearer:
    """Clears what `spec.state` names. Any call may be cut off and made again."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def clear(
        self,
        *,
        namespace: str,
        name: str,
        state: StateKeys | None,
        timeout: timedelta,  # noqa: ASYNC109 - it ends in a report, not in an exception
    ) -> StateReport:
        """Remove the Session's keys and report what became of them; it raises nothing.

        `cleared` means seen gone: listed keys do not exist, and a whole pass over the
        server found none under the prefixes. `keys_cleared` is what this call saw go.
        """
        if state is None or not (state.keys or state.index_keys or state.key_prefixes):
            return StateReport(cleared=True, reason=Reason.NOTHING_TO_CLEAR)
        clearing = _Clearing(self._client, namespace=namespace, name=name)
        try:
            _refuse_foreign(state, namespace=namespace, name=name)
            async with asyncio.timeout(timeout.total_seconds()):
                left = await clearing.run(state)
        except KeyRefused as error:
            return StateReport(cleared=False, reason=Reason.KEY_REFUSED, message=str(error))
        except StoreUnavailable as error:
            return clearing.report(Reason.REDIS_UNAVAILABLE, str(error))
        except TimeoutError:
            message = f"not done within {timeout.total_seconds():g} s: the next try goes on"
            return clearing.report(Reason.REDIS_UNAVAILABLE, message)
        if left:
            message = f"{left} keys came back: something still writes the Session's state"
            return clearing.report(Reason.WAITING_FOR_RELEASE, message)
        return clearing.report(Reason.CLEARED)


@asynccontextmanager
async def connected_clearer(
    url: str | None, *, redis_timeout: timedelta
) -> AsyncIterator[StateClearer | None]:
    """Give a clearer with connections of its own; None where no server is configured."""
    if url is None:
        yield None
        return
    async with RedisClient(url, timeout=redis_timeout) as client:
        yield StateClearer(client)


class _Clearing:
    """One call in progress: what it removed, and what it left alone."""

    def __init__(self, client: RedisClient, *, namespace: str, name: str) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._removed = 0
        self._foreign: dict[bytes, int] = {}

    async def run(self, state: StateKeys) -> int:
        """Remove everything; return how many keys were there again afterwards."""
        indexes = frozenset(key.encode() for key in state.index_keys)
        listed = indexes | {key.encode() for key in state.keys}
        # An index goes last of all that it lists: a crash in between loses no name.
        await self._unlink(listed - indexes)
        for index in indexes:
            await self._clear_index(index, indexes)
        again = await _until_quiet(lambda: self._sweep_prefixes(state.key_prefixes))
        return again + await self._existing(listed)

    def report(self, reason: Reason, message: str = "") -> StateReport:
        """Say how it ended, with the figures so far."""
        if foreign := sum(self._foreign.values()):
            left = f"{foreign} index members are not the Session's own and were left alone"
            message = f"{message}; {left}" if message else left
        return StateReport(
            cleared=reason is Reason.CLEARED,
            reason=reason,
            message=message,
            keys_cleared=self._removed,
        )

    async def _clear_index(self, index: bytes, indexes: frozenset[bytes]) -> None:
        is_set = await self._client.call("TYPE", index) == b"set"
        if is_set and await _until_quiet(lambda: self._sweep_members(index, indexes)):
            return  # names are still being added; without the SET they would be lost
        await self._unlink([index])

    async def _sweep_members(self, index: bytes, indexes: frozenset[bytes]) -> int:
        removed = self._foreign[index] = 0
        async for members in self._scan("SSCAN", index):
            own = set(filter(self._is_own, members))
            self._foreign[index] += len(set(members) - own)
            removed += await self._unlink(own - indexes)
        return removed

    async def _sweep_prefixes(self, prefixes: Iterable[str]) -> int:
        wanted = tuple(prefix.encode() for prefix in prefixes)
        if not wanted:
            return 0
        removed = 0
        pattern = keys.scan_pattern(self._namespace, self._name)
        async for found in self._scan("SCAN", options=(b"MATCH", pattern)):
            removed += await self._unlink(key for key in found if key.startswith(wanted))
        return removed

    async def _scan(
        self, *command: Argument, options: tuple[Argument, ...] = ()
    ) -> AsyncIterator[list[bytes]]:
        cursor = b"0"
        while True:
            step = (*command, cursor, *options, b"COUNT", SCAN_COUNT)
            cursor, found = await self._client.call(*step)
            yield found
            if cursor == b"0":
                return

    async def _unlink(self, names: Iterable[bytes]) -> int:
        """Remove keys; nothing leaves the server but through here, and only what is own."""
        removed = 0
        for batch in _batches(filter(self._is_own, names)):
            count = await self._client.call("UNLINK", *batch)
            removed += count
            self._removed += count
        return removed

    async def _existing(self, names: Iterable[bytes]) -> int:
        return sum([await self._client.call("EXISTS", *batch) for batch in _batches(names)])

    def _is_own(self, key: bytes) -> bool:
        return keys.is_own_key(key, self._namespace, self._name)


async def _until_quiet(sweep: Callable[[], Awaitable[int]]) -> int:
    """Sweep until a sweep removes nothing, PASSES at most; return what the last one removed."""
    for _ in range(PASSES):
        removed = await sweep()
        if not removed:
            return 0
    return removed


def _batches(names: Iterable[bytes]) -> Iterator[list[bytes]]:
    source = iter(names)
    while batch := list(islice(source, BATCH)):
        yield batch


def _refuse_foreign(state: StateKeys, *, namespace: str, name: str) -> None:
    """Raise KeyRefused, naming what is not the Session's own, before anything is touched."""
    own = partial(keys.is_own_key, namespace=namespace, name=name)
    own_prefix = partial(keys.is_own_prefix, namespace=namespace, name=name)
    foreign = [key for key in (*state.keys, *state.index_keys) if not own(key)]
    foreign += [prefix for prefix in state.key_prefixes if not own_prefix(prefix)]
    if foreign:
        more = f" and {len(foreign) - 1} more" if foreign[1:] else ""
        raise KeyRefused(
            f"{foreign[0]!r}{more} in spec.state may belong to others and nothing was removed: "
            f"name only keys and prefixes that are or continue '{namespace}:{name}' "
            "with a colon",
            reason=Reason.KEY_REFUSED,
        )
