"""What living clients cost the kube-apiserver: whom the audit log saw write while they beat.

1,000 Sessions as people write them, with nothing but defaults, each with a client of the
product's own library at one of three gateways.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
from tests.bench.figures import NotMeasuredError
from tests.bench.machine import cpu_seconds, machine, versions
from tests.bench.stage import NAMESPACE, Stage, metric, stage
from tests.support.audit_log import MutatingRequest
from tests.support.clients_world import ACCOUNT, AUDIENCE, token_permission
from tests.support.progress import progress, say
from tests.support.session_api import AGENT, CONTROLLER, GATEWAY

from gpusession.api.session import Phase
from gpusession.api.usage import Busy, SessionUsage
from gpusession.client import KubernetesIdentity, Session, connect

CLIENTS = 1_000
GATEWAYS = 3
SECONDS = 60.0
BEAT_SECONDS = 30
"""The default heartbeat.periodSeconds."""

LEAST_HEARD = 0.8
"""Of the beats that are due: below that the clients did not live."""

PATIENCE = 600.0
SIDE_BY_SIDE = 16

SETTLE_SECONDS = 35.0
"""More than a heartbeat period: by then everybody has beaten, and every binding is done."""

RATES = ("USER_RATE", "USER_BURST", "USER_PER_MINUTE", "NAMESPACE_RATE", "NAMESPACE_BURST")
GATEWAY_SETTINGS = dict.fromkeys(RATES, "100000")
"""All clients come at once, in the name of one account."""

ACCOUNTS = frozenset({CONTROLLER, AGENT, GATEWAY})
ASKED = frozenset({"tokenreviews", "subjectaccessreviews"})
"""Questions that are asked by `create`; the apiserver stores nothing of them."""

BASIS = (
    "mutating requests of the ServiceAccounts of controller, gateways and agent in the "
    "apiserver's audit log, while every client beats; questions (TokenReview, "
    "SubjectAccessReview) and the renewals of the leader's Lease are counted apart; the agent "
    "is the bench's own and asks nothing"
)


async def measure(rounds: int) -> dict[str, Any]:
    """Count so many times 60 seconds; raises NotMeasuredError."""
    about = {"machine": machine(), "versions": versions(kubernetes=True)}
    async with (
        stage(controller={}, gateways=GATEWAYS, gateway=GATEWAY_SETTINGS) as here,
        _clients(here) as clients,
    ):
        with progress(f"letting {len(clients)} clients settle for {SETTLE_SECONDS:g} s"):
            await asyncio.sleep(SETTLE_SECONDS)
        found = [await _round(here, clients, number + 1) for number in range(rounds)]
    return {"rounds": found, "clients": CLIENTS, "seconds": SECONDS, "basis": BASIS} | about


def table(figure: dict[str, Any]) -> str:
    """Lay a figure out for a person."""
    columns = {
        "writes": "writes",
        "lease_renewals": "Lease renewals",
        "questions": "questions",
        "beats": "beats",
        "controller_cpu_seconds": "controller CPU s",
        "gateways_cpu_seconds": "gateways CPU s",
        "apiserver_cpu_seconds": "apiserver CPU s",
    }
    head = f"{figure['clients']:,} living clients, {figure['seconds']:g} s each round"
    lines = [head, " ".join(f"{title:>16}" for title in columns.values())]
    lines += [" ".join(f"{row[name]!s:>16}" for name in columns) for row in figure["rounds"]]
    return "\n".join(lines)


@asynccontextmanager
async def _clients(here: Stage) -> AsyncIterator[list[Session]]:
    """Make the Sessions, and connect a client for each; all stay while the block runs."""
    names = [f"steady-{number}" for number in range(CLIENTS)]
    plane = here.stack.plane
    for manifest in token_permission(NAMESPACE):
        plane.kubectl("apply", "-f", "-", input=msgspec.json.encode(manifest).decode())
    token_file = plane.service_account_token(NAMESPACE, ACCOUNT, AUDIENCE)
    permits = asyncio.Semaphore(SIDE_BY_SIDE)

    async def create(name: str) -> None:
        async with permits:
            await here.cluster.pod(name)
            await here.cluster.session(name)

    with progress(f"creating {CLIENTS} Pods and Sessions"):
        await asyncio.gather(*map(create, names))
        await here.watcher.all_in(names, Phase.ACTIVE, seconds=PATIENCE)
    uids = [here.watcher.standing[name].uid for name in names]
    here.agent.usage_report = msgspec.structs.replace(
        here.agent.usage_report,
        sessions=tuple(SessionUsage(session_uid=uid, busy=Busy.NOT_BUSY) for uid in uids),
    )
    async with AsyncExitStack() as open_now:

        async def client(number: int, name: str) -> Session:
            async with permits:
                me = KubernetesIdentity(NAMESPACE, name, token_file=token_file)
                url = here.stack.gateways[number % GATEWAYS].url
                return await open_now.enter_async_context(connect(url, kubernetes=me))

        with progress(f"connecting {CLIENTS} clients"):
            clients = await asyncio.gather(*(client(*one) for one in enumerate(names)))
        yield list(clients)


async def _round(here: Stage, clients: list[Session], number: int) -> dict[str, Any]:
    before, beats, cpu = len(_writes(here)), _beats(here), _cpu(here)
    began = time.monotonic()
    await asyncio.sleep(SECONDS)
    heard = _beats(here) - beats
    if heard < LEAST_HEARD * CLIENTS * SECONDS / BEAT_SECONDS:
        raise NotMeasuredError(f"only {heard:.0f} beats were heard")
    lost = [client for client in clients if not client.is_connected]
    phases = Counter(one.phase for one in here.watcher.standing.values())
    if lost or phases != {Phase.ACTIVE: CLIENTS}:
        raise NotMeasuredError(f"{len(lost)} clients lost their connection; Sessions: {phases}")
    written = _writes(here)[before:]
    kinds = Counter(_kind(request) for request in written)
    row = {
        "seconds": round(time.monotonic() - began, 1),
        "writes": kinds["writes"],
        "lease_renewals": kinds["lease_renewals"],
        "questions": kinds["questions"],
        "beats": round(heard),
    } | {name: round(used - cpu[name], 2) for name, used in _cpu(here).items()}
    say(f"round {number}: {row['writes']} writes, {row['beats']} beats")
    return row


def _writes(here: Stage) -> list[MutatingRequest]:
    return [one for one in here.stack.plane.mutating_requests() if one.user in ACCOUNTS]


def _kind(request: MutatingRequest) -> str:
    if request.resource in ASKED:
        return "questions"
    return "lease_renewals" if request.resource == "leases" else "writes"


def _beats(here: Stage) -> float:
    name = "gpusession_gateway_heartbeats_total"
    return sum(metric(gateway.metrics_port, name) for gateway in here.stack.gateways)


def _cpu(here: Stage) -> dict[str, float]:
    stack = here.stack
    return {
        "controller_cpu_seconds": cpu_seconds(stack.controller.pid),
        "gateways_cpu_seconds": sum(cpu_seconds(one.process.pid) for one in stack.gateways),
        "apiserver_cpu_seconds": cpu_seconds(stack.plane.processes["kube-apiserver"].pid),
    }
