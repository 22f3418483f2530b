"""Follows one kind of object and keeps the newest of each: a list, then a watch, for ever.

What it holds may be behind. Presence in it is a hint that is cheap; absence proves
nothing until `KubeReader` has asked the apiserver.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from datetime import timedelta
from http import HTTPStatus
from typing import Generic, Protocol, TypeVar

import msgspec
import structlog

from gpusession.api.cluster import ObjectMeta
from gpusession.errors import ApiUnavailable, GpuSessionError, Stale
from gpusession.kube.client import KubeClient

PAUSE = timedelta(seconds=1)
"""After a broken watch, or one that ended sooner than this: client-go's first backoff."""

SERVER_TIMEOUT = "290"
"""Seconds until the server ends a watch; below the 5 minutes of load balancers' idling."""

log = structlog.get_logger()


class Observed(Protocol):
    """Any object with metadata: Pod, Node."""

    @property
    def metadata(self) -> ObjectMeta: ...  # noqa: D102 - the class docstring says it


T = TypeVar("T", bound=Observed)


class _ListMeta(msgspec.Struct, frozen=True):
    resource_version: str = msgspec.field(default="", name="resourceVersion")


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: tuple[msgspec.Raw, ...]


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: _ListMeta


class _Status(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""


class Reflector(Generic[T]):
    """Holds every object of one kind that matches a selector, by namespace and name."""

    def __init__(self, client: KubeClient, path: str, *, kind: type[T], selector: str = "") -> None:
        self._client = client
        self._path = path
        self._selector = {"labelSelector": selector} if selector else {}
        self._decoder = msgspec.json.Decoder(kind)
        self._objects: dict[tuple[str, str], T] = {}
        self._listeners: list[Callable[[T, bool], None]] = []
        self.synced = asyncio.Event()

    def get(self, namespace: str, name: str) -> T | None:
        """Return the newest known state, or None where nothing is known."""
        return self._objects.get((namespace, name))

    def __iter__(self) -> Iterator[T]:
        """Walk over everything known."""
        return iter(tuple(self._objects.values()))

    def listen(self, listener: Callable[[T, bool], None]) -> None:
        """Call `listener(object, gone)` for every new, changed or vanished object."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Follow until cancelled; trouble is logged and met with a new list."""
        while True:
            try:
                await self._follow(await self._list())
            except Stale:
                continue  # 410: history is compacted, list again at once
            except (GpuSessionError, msgspec.MsgspecError) as error:
                log.warning("watch broke", path=self._path, error=str(error))
                await asyncio.sleep(PAUSE.total_seconds())

    async def _follow(self, version: str) -> None:
        loop, pause = asyncio.get_running_loop(), PAUSE.total_seconds()
        while True:
            began = loop.time()
            version = await self._watch(version)
            if loop.time() - began < pause:
                await asyncio.sleep(pause)  # whoever hangs up at once is not asked at once

    async def _list(self) -> str:
        body = await self._client.get(self._path, self._selector)
        if body is None:
            raise ApiUnavailable(f"{self._path} is not served")
        page = msgspec.json.decode(body, type=_List)
        fresh = {self._key(o): o for o in map(self._decoder.decode, page.items)}
        gone = [o for key, o in self._objects.items() if key not in fresh]
        changed = [o for key, o in fresh.items() if not _says_same(self._objects.get(key), o)]
        self._objects = fresh
        self.synced.set()
        for found in gone:
            self._tell(found, gone=True)
        for found in changed:
            self._tell(found, gone=False)
        return page.metadata.resource_version

    async def _watch(self, version: str) -> str:
        params = self._selector | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": SERVER_TIMEOUT,
        }
        async with aclosing(self._client.follow(self._path, params)) as lines:
            async for line in lines:
                version = self._take_in(msgspec.json.decode(line, type=_Event))
        return version

    def _take_in(self, event: _Event) -> str:
        match event.type:
            case "BOOKMARK":
                bookmark = msgspec.json.decode(event.object, type=_Bookmark)
                return bookmark.metadata.resource_version
            case "ERROR":
                raise self._error(msgspec.json.decode(event.object, type=_Status))
            case kind:
                return self._apply(kind, self._decoder.decode(event.object))

    def _error(self, status: _Status) -> GpuSessionError:
        sentence = f"watch {self._path}: {status.code} {status.message}"
        return Stale(sentence) if status.code == HTTPStatus.GONE else ApiUnavailable(sentence)

    def _apply(self, kind: str, found: T) -> str:
        known = self._objects.pop(self._key(found), None)
        if kind != "DELETED":
            self._objects[self._key(found)] = found
        if kind == "DELETED" or not _says_same(known, found):
            self._tell(found, gone=kind == "DELETED")
        return found.metadata.resource_version

    def _tell(self, found: T, *, gone: bool) -> None:
        for listener in self._listeners:
            listener(found, gone)

    @staticmethod
    def _key(found: T) -> tuple[str, str]:
        return found.metadata.namespace, found.metadata.name


def _says_same(known: Observed | None, found: Observed) -> bool:
    # A Node's status is rewritten every few minutes with nothing in it that we read.
    if known is None:
        return False
    version = found.metadata.resource_version
    metadata = msgspec.structs.replace(known.metadata, resource_version=version)
    return bool(msgspec.structs.replace(known, metadata=metadata) == found)  # type: ignore[type-var]
