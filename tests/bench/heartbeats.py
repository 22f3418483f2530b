"""Heartbeats per core of a gateway, over the least that a process could do for them.

A real gateway process, real WebSockets, real Redis; and in the same run, turn and turn
about, tests/bench/floor.py. Both are counted by the CPU that their own process has used:
clients, Redis and whoever else is on the machine share its cores, and what they take says
nothing about the gateway.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import figures
from tests.bench.beaters import Beater, Tally, beaters, quiet
from tests.bench.figures import NotMeasuredError, Round, Usage
from tests.bench.machine import cpu_seconds, machine, versions
from tests.integration.gateway.conftest import nowhere
from tests.support import assets
from tests.support.gateway_rig import Desk, GatewayProcess, Known, desk
from tests.support.progress import progress, say
from tests.support.redis_server import RedisServer
from tests.support.toolchain import REPOSITORY

from gpusession.store import keys

CLIENTS = 800
"""Enough that a core never waits for one, few enough for the limit of one namespace."""

SECONDS = 4.0
"""Of each half of a round: 400 ticks of the clock by which Linux counts CPU."""

WARM_SECONDS = 1.5
PATIENCE = 60.0

BASIS = (
    "beats acknowledged per CPU second (user and system) of the gateway's own process, over beats "
    "written per CPU second of a process that only writes them: redis-py's asyncio client on the "
    "gateway's event loop (floor), and its blocking client (floor_blocking)"
)


@dataclass(frozen=True, slots=True)
class _Bench:
    """One gateway, its Redis, and clients that are connected."""

    url: str
    front: Desk
    known: list[Known]
    tally: Tally
    crowd: list[Beater]


async def measure(rounds: int) -> dict[str, Any]:
    """Give the figure of so many rounds; raises NotMeasuredError."""
    about = {"machine": machine(), "versions": versions()}
    with tempfile.TemporaryDirectory(prefix="gpusession-bench-") as folder:
        async with _bench(Path(folder)) as bench:
            found = await _rounds(bench, rounds)
    return figures.heartbeats(found) | {"basis": BASIS, "clients": CLIENTS} | about


def table(figure: dict[str, Any]) -> str:
    """Lay a figure out for a person."""
    columns = {
        "floor": "floor",
        "floor_blocking": "blocking",
        "gateway": "gateway",
        "ratio": "ratio",
        "ratio_to_blocking": "to blocking",
        "gateway_per_wall_second": "gateway/wall s",
        "gateway_cores": "its cores",
    }
    lines = ["beats per second of each process' own CPU", _row("round", *columns.values())]
    for number, one in enumerate(figure["rounds"], start=1):
        lines.append(_row(number, *(f"{one[name]:,}" for name in columns)))
    ratio = figure["spread"]["ratio"]
    lines.append(
        f"median: {figure['per_core_per_second']:,.0f} per gateway core over "
        f"{figure['floor_per_second']:,.0f}: {ratio['median']} ({ratio['least']} to "
        f"{ratio['most']}); over the blocking client's {figure['floor_blocking_per_second']:,.0f}: "
        f"{figure['ratio_to_blocking_median']}"
    )
    return "\n".join(lines)


def _row(*cells: object) -> str:
    return " ".join(f"{cell!s:>14}" for cell in cells)


@asynccontextmanager
async def _bench(folder: Path) -> AsyncIterator[_Bench]:
    # A busy machine must not make the gateway refuse the clients that it is measured with.
    settings: dict[str, Any] = {"log_level": "INFO", "connections_least": CLIENTS + 1}
    with (
        RedisServer(assets.redis_server(), folder / "redis") as redis,
        GatewayProcess(
            folder, redis_url=redis.url, kubeconfig=nowhere(folder), **settings
        ) as gateway,
    ):
        async with AsyncExitStack() as stack:
            front = await stack.enter_async_context(desk(redis.url, gateway))
            with progress(f"opening {CLIENTS} Sessions and a connection for each"):
                known = [await front.known() for _ in range(CLIENTS)]
                tally, crowd = await stack.enter_async_context(
                    beaters(gateway.port, [one.token for one in known])
                )
            yield _Bench(redis.url, front, known, tally, crowd)


async def _rounds(bench: _Bench, rounds: int) -> list[Round]:
    found = []
    for number in range(rounds + 1):  # the first one warms all of them up
        one = Round(
            floor=await _floor(bench.url, "asyncio"),
            gateway=await _beaten(bench),
            blocking=await _floor(bench.url, "blocking"),
        )
        name = f"round {number} of {rounds}" if number else "warming up"
        say(
            f"{name}: floor {one.floor.per_core_second:,.0f}, gateway "
            f"{one.gateway.per_core_second:,.0f} per CPU second, ratio {one.ratio:.2f}"
        )
        found.append(one)
    return found[1:]


async def _floor(url: str, kind: str) -> Usage:
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.bench.floor", url, str(SECONDS), kind),
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
    )
    async with asyncio.timeout(SECONDS + PATIENCE):
        output, _ = await program.communicate()
    if program.returncode:
        raise NotMeasuredError("the floor program failed")
    return Usage(**json.loads(output))


async def _beaten(bench: _Bench) -> Usage:
    """Let all clients beat; what the gateway acknowledged must be what Redis has counted."""
    tally, pid = bench.tally, bench.front.gateway.process.pid
    counted, acks = await _counted(bench), tally.acks
    tally.is_beating = True
    for beater in bench.crowd:
        beater.beat()
    await asyncio.sleep(WARM_SECONDS)
    before = (tally.acks, cpu_seconds(pid), time.monotonic())
    await asyncio.sleep(SECONDS)
    after = (tally.acks, cpu_seconds(pid), time.monotonic())
    await quiet(tally)
    written = await _counted(bench) - counted
    if written != tally.acks - acks:
        raise NotMeasuredError(f"{tally.acks - acks} beats acknowledged, {written} written")
    return Usage(*(late - early for early, late in zip(before, after, strict=True)))


async def _counted(bench: _Bench) -> int:
    names = [keys.record(one.uid) for one in bench.known]
    return sum([int(await bench.front.redis.call("HGET", name, "n")) for name in names])
