"""The floor of a beat: one process that does nothing but write its fields to Redis.

    python -m tests.bench.floor REDIS_URL SECONDS asyncio|blocking

redis-py with hiredis, pipelines of as many beats as a gateway's call has, no token, no
client. A gateway serves many at once, so its floor is the asyncio client on the gateway's
own event loop; the blocking client is what redis-py can do at best. Prints JSON.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis
import redis.asyncio
import uvloop

from gpusession.store import keys
from gpusession.store.sessions import PAGE

Pages = list[list[bytes]]


class Stint:
    """How much was done, in how much time; iterating gives the beat's number until it is over."""

    def __init__(self, seconds: float) -> None:
        self.beats = 0
        self._seconds = seconds

    def __iter__(self) -> Iterator[int]:
        number, began, used = 0, time.monotonic(), time.process_time()
        while time.monotonic() - began < self._seconds:
            number += 1
            yield number
        self.wall, self.cpu = time.monotonic() - began, time.process_time() - used

    def as_json(self) -> str:
        """Say it as figures.Usage reads it."""
        done = {"beats": self.beats, "cpu_seconds": self.cpu, "wall_seconds": self.wall}
        return json.dumps(done)


def gather(pipeline: Any, page: list[bytes], number: int) -> None:
    """Put a page of beats into a pipeline."""
    now = time.time_ns() // 1_000_000
    for key in page:
        pipeline.hset(key, mapping={"hb": now, "gw": "floor", "n": number})


def write_blocking(url: str, pages: Pages, stint: Stint) -> None:
    """Beat for all records, round and round, with the blocking client."""
    client = redis.Redis.from_url(url)
    for number in stint:
        for page in pages:
            pipeline = client.pipeline(transaction=False)
            gather(pipeline, page, number)
            pipeline.execute()
            stint.beats += len(page)


def write_asyncio(url: str, pages: Pages, stint: Stint) -> None:
    """Do the same with the asyncio client."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_write(url, pages, stint))


async def _write(url: str, pages: Pages, stint: Stint) -> None:
    client = redis.asyncio.Redis.from_url(url)
    for number in stint:
        for page in pages:
            pipeline = client.pipeline(transaction=False)
            gather(pipeline, page, number)
            await pipeline.execute()
            stint.beats += len(page)
    await client.aclose()


KINDS: dict[str, Callable[[str, Pages, Stint], None]] = {
    "asyncio": write_asyncio,
    "blocking": write_blocking,
}


def main(url: str, seconds: float, kind: str) -> None:
    """Write for so long, and say what was done."""
    records = sorted(redis.Redis.from_url(url).scan_iter(match=keys.record("*"), count=1000))
    stint = Stint(seconds)
    pages = [records[start : start + PAGE] for start in range(0, len(records), PAGE)]
    KINDS[kind](url, pages, stint)
    print(stint.as_json())


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
