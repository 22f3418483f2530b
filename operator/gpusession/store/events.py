"""What the processes tell each other, over one Redis stream.

An accelerator and no more: every listener also looks for itself, so that a lost event costs
time only. Events come at least once.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from gpusession.errors import StoreUnavailable
from gpusession.store import keys
from gpusession.store.client import RedisClient

GROUP = "controller"

KEPT = 10_000
"""Events in the stream, about: the last ends of some 3,000 Sessions, in 2 MB (parts/events.lua)."""

BLOCK = timedelta(seconds=1)
"""One wait for news."""

PAGE = 100

NOTHING = "0-0"
"""The place before the first event; also the end of XAUTOCLAIM."""

LOST = ("NOGROUP", "UNBLOCKED")
"""How a server says that the group, or the stream under a waiting reader, is gone."""


class EventKind(StrEnum):
    """Everything that is told."""

    CLOSE = "close"
    DISCONNECTED = "disconnected"
    RETURNED = "returned"
    PENDING = "pending"
    ENDING = "ending"
    RESTORED = "restored"
    REVOKED = "revoked"
    ROTATED = "rotated"
    GONE = "gone"
    HEARTBEAT = "heartbeat"


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of news about one Session."""

    id: str
    """Its place in the stream, to go on from."""
    kind: EventKind
    uid: str
    fields: Mapping[str, str]
    """What the kind needs: `why`, `until` of PENDING, `why` of ENDING, `digest` of ROTATED,
    `per` of HEARTBEAT."""


class EventBus:
    """The stream. Whoever listens gives a client of its own, for a wait holds a connection."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._block = min(BLOCK, client.timeout / 2) // timedelta(milliseconds=1)

    async def publish(self, kind: EventKind, uid: str, **fields: str) -> None:
        """Tell all listeners."""
        pairs = [part for pair in fields.items() for part in pair]
        await self._client.call(
            "XADD", keys.EVENTS, "MAXLEN", "~", KEPT, "*", "kind", kind, "uid", uid, *pairs
        )

    async def follow(self, last_id: str | None = None) -> AsyncIterator[Event]:
        """Give every event after that one, or from now on; for each listener all of them.

        A stream that was emptied, or is an older copy, is followed from where it ends by then:
        what a copy says was told before, and may be undone since.
        Raises StoreUnavailable: go on with the id of the last event that came.
        """
        last = last_id or await self.newest()
        while True:
            entries = await self._read(last)
            for event in _events(entries):
                yield event
            if entries:
                last = entries[-1][0].decode()
            elif _order(newest := await self.newest()) < _order(last):
                last = newest

    async def consume(self, consumer: str) -> AsyncIterator[Event]:
        """Give every event to one of the consumers, and first what others left undone.

        An event counts as done when the one after it is asked for. A group that was lost is
        made anew and begins with what comes next. Raises StoreUnavailable.
        """
        await self._make_group()
        async for event in self._left_undone(consumer):
            yield event
        lost = False
        while True:
            try:
                entries = await self._read_group(consumer)
                lost = False
            except StoreUnavailable as error:
                if lost or not any(word in str(error) for word in LOST):
                    raise
                lost, entries = True, []
                await self._make_group()
            for event in _events(entries):
                yield event
            await self._acknowledge(entries)

    async def _left_undone(self, consumer: str) -> AsyncIterator[Event]:
        cursor = NOTHING.encode()
        while True:
            cursor, entries, *_ = await self._client.call(
                "XAUTOCLAIM", keys.EVENTS, GROUP, consumer, 0, cursor, "COUNT", PAGE
            )
            for event in _events(entries):
                yield event
            await self._acknowledge(entries)
            if cursor == NOTHING.encode():
                return

    async def _read(self, last: str) -> Sequence[Any]:
        command = ("XREAD", "COUNT", PAGE, "BLOCK", self._block, "STREAMS", keys.EVENTS, last)
        return _entries(await self._client.call(*command))

    async def _read_group(self, consumer: str) -> Sequence[Any]:
        who = ("XREADGROUP", "GROUP", GROUP, consumer)
        what = ("COUNT", PAGE, "BLOCK", self._block, "STREAMS", keys.EVENTS, ">")
        return _entries(await self._client.call(*who, *what))

    async def _acknowledge(self, entries: Sequence[Any]) -> None:
        if entries:
            await self._client.call("XACK", keys.EVENTS, GROUP, *(entry[0] for entry in entries))

    async def _make_group(self) -> None:
        try:
            await self._client.call("XGROUP", "CREATE", keys.EVENTS, GROUP, "$", "MKSTREAM")
        except StoreUnavailable as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def newest(self) -> str:
        """Give the id of the last event so far, to follow from without a gap."""
        entries = await self._client.call("XREVRANGE", keys.EVENTS, "+", "-", "COUNT", 1)
        newest: bytes = entries[0][0] if entries else NOTHING.encode()
        return newest.decode()


_KINDS = {kind.value: kind for kind in EventKind}


def _entries(answer: dict[bytes, Sequence[Any]] | None) -> Sequence[Any]:
    return answer[keys.EVENTS.encode()] if answer else []


def _events(entries: Sequence[Any]) -> list[Event]:
    """Read what can be read; a kind of a later version is nothing to us."""
    found = []
    for entry_id, flat in entries:
        if not flat:
            continue
        pairs = zip(flat[::2], flat[1::2], strict=True)
        fields = {field.decode(): value.decode() for field, value in pairs}
        kind, uid = fields.pop("kind", ""), fields.pop("uid", "")
        if kind in _KINDS and uid:
            found.append(Event(entry_id.decode(), _KINDS[kind], uid, fields))
    return found


def _order(entry_id: str) -> tuple[int, int]:
    moment, _, number = entry_id.partition("-")
    return int(moment), int(number or 0)
