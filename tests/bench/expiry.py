"""From the moment a deadline passes to the PendingDestroy that the apiserver tells of.

A real controller process, apiserver and Redis. 50 Sessions a second become idle, among 1,000
to 100,000 records that beat. Idleness is not braked (rules/brake.py holds back silence only),
so that what is measured is the way of an end and not the brake. Their destroy grace is long, so
that no release runs beside: one costs apiserver and agent ten times what is measured here.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.bench import figures, idlers
from tests.bench.crowd import BEAT_SECONDS, Crowd
from tests.bench.figures import Ends, NotMeasuredError, percentile
from tests.bench.idlers import IDLE_SECONDS, Standing, Watcher
from tests.bench.machine import machine, versions
from tests.bench.stage import Stage, stage
from tests.support.cluster import Cluster, running
from tests.support.progress import progress, say

from gpusession.api.session import Phase, Reason

SIZES = (1_000, 10_000, 100_000)
RATE = 50
"""Due per second."""

SECONDS = 5
"""Of each round."""

ENDS = RATE * SECONDS
NAMES = [f"idler-{number}" for number in range(ENDS)]
"""The same Sessions in each round: clients call their ends off in between."""

LEAD_SECONDS = 3.0
"""From setting the deadlines to the first one."""

PATIENCE = 240.0

ATTEMPTS = 3
"""At each round. One in which the controller was away from Redis for 5 s is not counted: then
everybody has a whole idle timeout anew, which is right and no lateness of the sweep."""

SETTINGS = {"RESYNC_PERIOD": "PT6H", "LOG_LEVEL": "INFO"}
"""A resync would forget the records behind which no Session stands."""

BASIS = (
    "from the idle deadline in the record (Redis' clock) to the arrival of the status "
    "PendingDestroy at a watch (the same machine's clock); real controller process, apiserver and "
    "Redis, default settings but no resync, an agent of the test's that answers at once; of the "
    "records only those that become due have Session objects; all beat every 30 s; bare: one write "
    "per Session to the same apiserver at the same rate, no operator involved, just before; "
    "claimed: the end decided, by the event in Redis, before the status write"
)


@dataclass(frozen=True, slots=True)
class _Bench:
    stage: Stage
    crowd: Crowd

    @property
    def cluster(self) -> Cluster:
        return self.stage.cluster

    @property
    def watcher(self) -> Watcher:
        return self.stage.watcher

    def watch_breaks(self) -> float:
        """Read how often the controller has begun to watch Redis anew."""
        return self.stage.controller_metric("gpusession_redis_watch_breaks_total")


async def measure(rounds: int) -> dict[str, Any]:
    """Give the figure of so many rounds at each size; raises NotMeasuredError."""
    about = {"machine": machine(), "versions": versions(kubernetes=True)}
    async with _bench() as bench:
        await _warm(bench)
        rows = [await _row(bench, records, rounds) for records in SIZES]
    return {"rows": rows, "rounds": rounds, "basis": BASIS} | about


def table(figure: dict[str, Any]) -> str:
    """Lay a figure out for a person."""
    columns = {
        "records": "records",
        "p50_s": "p50 s",
        "p99_s": "p99 s",
        "max_s": "max s",
        "claimed_p50_s": "claimed p50",
        "claimed_p99_s": "claimed p99",
        "bare_p50_s": "bare p50",
        "bare_p99_s": "bare p99",
        "discarded": "discarded",
        "p99_by_round_s": "p99 of each round",
    }
    lines = [f"deadline passed -> PendingDestroy written, {RATE} due per second"]
    lines.append(" ".join(f"{title:>11}" for title in columns.values()))
    lines += [" ".join(f"{row[name]!s:>11}" for name in columns) for row in figure["rows"]]
    return "\n".join(lines)


@asynccontextmanager
async def _bench() -> AsyncIterator[_Bench]:
    async with stage(controller=SETTINGS) as here:
        crowd = Crowd(here.redis)
        async with running(crowd.run()):
            yield _Bench(here, crowd)


async def _warm(bench: _Bench) -> None:
    """Make the Sessions, and end them once, when a gateway has been heard for long enough."""
    with progress(f"waiting {IDLE_SECONDS} s: nobody is idle before that"):
        await asyncio.sleep(IDLE_SECONDS + LEAD_SECONDS)
    with progress(f"creating {ENDS} Pods and Sessions"):
        await idlers.create(bench.cluster, NAMES)
        await bench.watcher.all_in(NAMES, Phase.ACTIVE, seconds=PATIENCE)
        for one in bench.watcher.standing.values():
            await bench.crowd.join(one.uid)
    with progress("warming up"):
        await _round(bench)


async def _row(bench: _Bench, records: int, rounds: int) -> dict[str, Any]:
    with progress(f"filling up to {records:,} records"):
        await bench.crowd.fill(records)
        await asyncio.sleep(BEAT_SECONDS)  # until each has beaten, and the looks are spread
    found: list[Ends] = []
    for number in range(1, ATTEMPTS * rounds + 1):
        breaks = bench.watch_breaks()
        bare = await idlers.bare_writes(bench.cluster, NAMES, due=_evenly())
        one = Ends(*await _round(bench), bare=bare)
        if bench.watch_breaks() == breaks:
            found.append(one)
        say(
            f"{records:,} records, attempt {number}, round {len(found)} of {rounds}: p99 "
            f"{percentile(one.written, 0.99):.3f} s, claimed {percentile(one.claimed, 0.99):.3f} "
            f"s, bare writes {percentile(one.bare, 0.99):.3f} s; load {os.getloadavg()[0]:.1f}"
        )
        if len(found) == rounds:
            return figures.expiry_row(records, found, rate=RATE) | {"discarded": number - rounds}
    raise NotMeasuredError(f"{len(found)} of {number} rounds without a break: too busy a machine")


async def _round(bench: _Bench) -> tuple[list[float], list[float]]:
    """Have all become due evenly; give how late each was written, and was claimed."""
    watcher = bench.watcher
    uids = [watcher.standing[name].uid for name in NAMES]
    await bench.crowd.use(uids)
    await watcher.all_in(NAMES, Phase.ACTIVE, seconds=PATIENCE)
    due = _evenly()
    await idlers.set_deadlines(bench.stage.redis, uids, ends=due)
    if time.time() > due[0]:
        raise NotMeasuredError("the first deadline passed before the last one was set")
    await watcher.all_in(NAMES, Phase.PENDING_DESTROY, seconds=PATIENCE)
    claims = await idlers.claims(bench.stage.redis, after=due[0])
    written = [_late(watcher.standing[name], end) for name, end in zip(NAMES, due, strict=True)]
    return written, [claims[uid] - end for uid, end in zip(uids, due, strict=True)]


def _evenly() -> list[float]:
    first = time.time() + LEAD_SECONDS
    return [first + number / RATE for number in range(ENDS)]


def _late(end: Standing, due: float) -> float:
    if end.reason != Reason.IDLE:
        raise NotMeasuredError(f"a Session ended for {end.reason}, not for being idle")
    if end.since < due:
        raise NotMeasuredError(f"a Session ended {due - end.since:.3f} s before its deadline")
    return end.since - due
