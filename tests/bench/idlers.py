"""Real Sessions on a real apiserver that become idle one after the other, and who watches them.

An agent of the test's binds them at once. Everything else is the product's. They have a long
destroy grace, in which a client's activity calls the end off.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec
from tests.bench.figures import NotMeasuredError
from tests.support.cluster import Cluster

from gpusession.api.session import GROUP, VERSION, Phase
from gpusession.store import keys
from gpusession.store.client import RedisClient

IDLE_SECONDS = 60
"""Long enough that none is idle before all of a round are there."""

GRACE_SECONDS = 3600
"""An end may be called off for so long: the same Sessions serve every round."""

SIDE_BY_SIDE = 16


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str
    name: str = ""
    uid: str = ""


class _Status(msgspec.Struct):
    phase: str = ""
    reason: str = ""


class _Session(msgspec.Struct):
    metadata: _Metadata
    status: _Status = msgspec.field(default_factory=_Status)


class _Event(msgspec.Struct):
    type: str
    object: _Session


class Standing(NamedTuple):
    """What the apiserver has last told of a Session, and since when, by the machine's clock."""

    uid: str
    phase: str
    reason: str
    since: float


class Watcher:
    """Notes when the apiserver tells that a Session has gone over to another phase."""

    def __init__(self, cluster: Cluster) -> None:
        self._admin = cluster.admin
        self._path = f"/apis/{GROUP}/{VERSION}/namespaces/{cluster.namespace}/sessions"
        self.standing: dict[str, Standing] = {}

    async def run(self) -> None:
        """Follow the Sessions of the namespace until cancelled."""
        version = "0"
        while True:
            params = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version}
            async with aclosing(self._admin.follow(self._path, params)) as lines:
                async for line in lines:
                    now = time.time()
                    event = msgspec.json.decode(line, type=_Event)
                    version = event.object.metadata.resource_version
                    if event.type != "BOOKMARK":
                        self._note(event.object, now)

    async def all_in(self, names: Sequence[str], phase: Phase, *, seconds: float) -> None:
        """Wait until all of them are in a phase."""
        missing = set(names)
        try:
            async with asyncio.timeout(seconds):
                while missing:
                    missing = {name for name in missing if not self._is_in(name, phase)}
                    await asyncio.sleep(0.1)
        except TimeoutError:
            sentence = f"{len(missing)} Sessions were not {phase} within {seconds:g} s"
            raise NotMeasuredError(sentence) from None

    def _is_in(self, name: str, phase: Phase) -> bool:
        return name in self.standing and self.standing[name].phase == phase

    def _note(self, session: _Session, now: float) -> None:
        name, status = session.metadata.name, session.status
        if not self._is_in(name, Phase(status.phase or Phase.PENDING)):
            phase = status.phase or Phase.PENDING.value
            self.standing[name] = Standing(session.metadata.uid, phase, status.reason, now)


async def create(cluster: Cluster, names: list[str]) -> None:
    """Create a Pod that runs, and its Session, for each name."""
    permits = asyncio.Semaphore(SIDE_BY_SIDE)

    async def one(name: str) -> None:
        async with permits:
            await cluster.pod(name)
            # Without signal GPU, which the agent of the test does not report.
            idle = {"timeoutSeconds": IDLE_SECONDS, "signals": ["Client"]}
            await cluster.session(name, idle=idle, destroyGraceSeconds=GRACE_SECONDS)

    await asyncio.gather(*map(one, names))


async def set_deadlines(redis: RedisClient, uids: list[str], *, ends: list[float]) -> None:
    """Make them idle at these times: as if each had been used for the last time before.

    The record is to be looked at now, so that the product itself finds out when it is due.
    """
    for uid, end in zip(uids, ends, strict=True):
        used = round((end - IDLE_SECONDS) * 1000)
        await redis.call("HSET", keys.record(uid), "act", used)
        await redis.call("ZADD", keys.DEADLINES, "XX", 0, uid)


async def claims(redis: RedisClient, *, after: float) -> dict[str, float]:
    """Give when the controller took the right to end each Session, as Redis wrote it down."""
    entries = await redis.call("XRANGE", keys.EVENTS, round(after * 1000), "+")
    found: dict[str, float] = {}
    for number, flat in entries:
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if fields[b"kind"] == b"pending":
            found[fields[b"uid"].decode()] = int(number.partition(b"-")[0]) / 1000
    return found


async def bare_writes(cluster: Cluster, names: Sequence[str], *, due: list[float]) -> list[float]:
    """Write an annotation to each at its time, and give how late the apiserver said yes.

    What one write costs on this machine at this moment, without any operator.
    """

    async def one(name: str, moment: float) -> float:
        await asyncio.sleep(moment - time.time())
        await cluster.patch("sessions", name, {"metadata": {"annotations": {"bench": str(moment)}}})
        return time.time() - moment

    return await asyncio.gather(*map(one, names, due))


def agent_pod(node: str, port: int) -> dict[str, Any]:
    """Give the Pod by which the controller finds the agent; it outlives its node's silence."""
    container = {"name": "agent", "image": "none"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "agent", "labels": {"app.kubernetes.io/name": "gpusession-agent"}},
        "spec": {
            "nodeName": node,
            "serviceAccountName": "gpusession-agent",
            "tolerations": [{"operator": "Exists"}],
            "containers": [container | {"ports": [{"name": "https", "containerPort": port}]}],
        },
    }


async def announce_agent(admin: Cluster, node: str, url: str) -> None:
    """Create the node, and the agent's Pod on it, which runs."""
    await admin.node(node)
    port = int(url.rpartition(":")[2])
    path = f"/api/v1/namespaces/{admin.namespace}/pods"
    await admin.admin.send("POST", path, body=agent_pod(node, port))
    status = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
    await admin.patch("pods", "agent", {"status": status}, sub="/status")
