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
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tests.bench import figures, idlers
from tests.bench.crowd import BEAT_SECONDS, Crowd
from tests.bench.figures import NotMeasuredError
from tests.bench.idlers import IDLE_SECONDS, Standing, Watcher
from tests.bench.machine import machine, versions
from tests.support.builders import make_bind, make_release
from tests.support.cluster import Cluster, kube_client, running
from tests.support.fake_agent import FakeAgent
from tests.support.operator_stack import AGENT_SERVER_NAME, AGENTS, OperatorStack
from tests.support.progress import progress, say
from tests.support.session_api import create_namespace

from gpusession.api.session import Phase, Reason
from gpusession.store.client import RedisClient

SIZES = (1_000, 10_000, 100_000)
RATE = 50
"""Due per second."""

SECONDS = 5
"""Of each round."""

ENDS = RATE * SECONDS
NAMES = [f"idler-{number}" for number in range(ENDS)]
"""The same Sessions in each round: clients call their ends off in between."""

NAMESPACE, NODE = "bench", "nowhere"
LEAD_SECONDS = 3.0
"""From setting the deadlines to the first one."""

PATIENCE = 120.0

SETTINGS = {"RESYNC_PERIOD": "PT6H", "LOG_LEVEL": "INFO"}
"""A resync would forget the records behind which no Session stands."""

BASIS = (
    "from the idle deadline in the record (Redis' clock) to the arrival of the status "
    "PendingDestroy at a watch (the same machine's clock); real controller process, apiserver and "
    "Redis, default settings but no resync, an agent of the test's that answers at once; of the "
    "records only those that become due have Session objects; all beat every 30 s; bare: one write "
    "per Session to the same apiserver at the same rate, no operator involved, just before"
)


@dataclass(frozen=True, slots=True)
class _Bench:
    cluster: Cluster
    redis: RedisClient
    crowd: Crowd
    watcher: Watcher


async def measure(rounds: int) -> dict[str, Any]:
    """Give the figure of so many rounds at each size; raises NotMeasuredError."""
    about = {"machine": machine(), "versions": versions(kubernetes=True)}
    async with _bench() as bench:
        await _warm(bench)
        rows = [await _row(bench, records, rounds) for records in SIZES]
    return {"rows": rows, "rounds": rounds, "basis": BASIS} | about


def table(figure: dict[str, Any]) -> str:
    """Lay a figure out for a person."""
    lines = ["deadline passed -> PendingDestroy written"]
    lines.append(
        f"{'records':>9} {'due/s':>6} {'p50 s':>7} {'p99 s':>7} {'max s':>7} {'ends':>6} "
        f"{'bare p50':>8} {'bare p99':>8}"
    )
    lines += [
        f"{row['records']:>9,} {row['due_per_second']:>6} {row['p50_s']:>7.3f} "
        f"{row['p99_s']:>7.3f} {row['max_s']:>7.3f} {row['ends']:>6} "
        f"{row['bare_p50_s']:>8.3f} {row['bare_p99_s']:>8.3f}  p99 by round: "
        + ", ".join(f"{late:.3f}" for late in row["p99_by_round_s"])
        for row in figure["rows"]
    ]
    return "\n".join(lines)


@asynccontextmanager
async def _bench() -> AsyncIterator[_Bench]:
    with OperatorStack(nodes=(), controller_settings=SETTINGS) as stack:
        create_namespace(stack.plane, NAMESPACE)
        async with AsyncExitStack() as open_now:
            enter = open_now.enter_async_context
            admin = await enter(kube_client(stack.plane.admin_kubeconfig, timeout=30))
            certificate = stack.plane.certificate("agent", sans=[AGENT_SERVER_NAME])
            agent = await enter(FakeAgent(certificate))
            agent.bind_report, agent.release_report = make_bind(), make_release()
            await idlers.announce_agent(Cluster(admin, AGENTS), NODE, agent.url)
            redis = await enter(RedisClient(stack.records.url, timeout=timedelta(seconds=5)))
            cluster = Cluster(admin, NAMESPACE)
            bench = _Bench(cluster, redis, Crowd(redis), Watcher(cluster))
            await enter(running(bench.crowd.run(), bench.watcher.run()))
            yield bench


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
    ends, bare = [], []
    for number in range(1, rounds + 1):
        bare.append(await idlers.bare_writes(bench.cluster, NAMES, due=_evenly()))
        ends.append(await _round(bench))
        say(
            f"{records:,} records, round {number} of {rounds}: p99 "
            f"{figures.percentile(ends[-1], 0.99):.3f} s, of bare writes "
            f"{figures.percentile(bare[-1], 0.99):.3f} s, load {os.getloadavg()[0]:.1f}"
        )
    return figures.expiry_row(records, ends, bare, rate=RATE)


async def _round(bench: _Bench) -> list[float]:
    """Have all become due evenly, and give how late each PendingDestroy was."""
    watcher = bench.watcher
    uids = [watcher.standing[name].uid for name in NAMES]
    await bench.crowd.use(uids)
    await watcher.all_in(NAMES, Phase.ACTIVE, seconds=PATIENCE)
    due = _evenly()
    await idlers.set_deadlines(bench.redis, uids, ends=due)
    if time.time() > due[0]:
        raise NotMeasuredError("the first deadline passed before the last one was set")
    await watcher.all_in(NAMES, Phase.PENDING_DESTROY, seconds=PATIENCE)
    return [_late(watcher.standing[name], moment) for name, moment in zip(NAMES, due, strict=True)]


def _evenly() -> list[float]:
    first = time.time() + LEAD_SECONDS
    return [first + number / RATE for number in range(ENDS)]


def _late(end: Standing, due: float) -> float:
    if end.reason != Reason.IDLE:
        raise NotMeasuredError(f"a Session ended for {end.reason}, not for being idle")
    if end.since < due:
        raise NotMeasuredError(f"a Session ended {due - end.since:.3f} s before its deadline")
    return end.since - due
