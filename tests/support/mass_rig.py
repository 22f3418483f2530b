"""Very many Sessions on a controller rig, all on one Pod, and the beats of their clients."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from itertools import count, islice
from typing import Any

import msgspec
from tests.support.builders import make_release, make_status
from tests.support.cluster import Cluster
from tests.support.controller_rig import NODE, ControllerRig, utc_now

from gpusession.api.session import FINALIZER, ConditionType, Phase, Session, SessionStatus
from gpusession.api.usage import UsageReport
from gpusession.errors import Stale
from gpusession.kube.writer import KubeWriter
from gpusession.rules.conditions import holds, timestamp
from gpusession.store.clients import TOKEN_LIFE, ClientStore
from gpusession.store.gateways import GatewayRegistry

SIZE = int(os.environ.get("MASS_SIZE", "300"))
"""Sessions of a test; 1,000 take a minute on two busy cores."""

SHORT = {
    "brake_window": timedelta(seconds=4),
    "deadline_lease": timedelta(seconds=2),
    "census_period": timedelta(seconds=1),
}
"""The brake opens after two windows in which less would do: 8 s."""

SPEC = {
    "heartbeat": {"periodSeconds": 2, "failureThreshold": 2, "initialDelaySeconds": 0},
    "idle": {"timeoutSeconds": 0},
}
GATEWAY, DIGEST = "g-1", "digest"
AT_ONCE = 32

_crowds = count()
BEATS_AT_ONCE = 200


class Mass:
    """The Sessions, and who of them has a client that beats."""

    def __init__(self, cluster: Cluster, rig: ControllerRig) -> None:
        self.rig = rig
        self._cluster = cluster
        self._pod = f"crowd-{next(_crowds)}"
        self._clients = ClientStore(rig.redis)
        self._gateways = GatewayRegistry(rig.redis)
        self._writer = KubeWriter(rig.client)
        self.uids: list[str] = []
        self.beating: set[str] = set()

    async def create(self, size: int = SIZE) -> None:
        """Bring so many Sessions to Active, each with its record and a token."""
        self.rig.agent.release_report = make_release()
        self.rig.agent.usage_report = UsageReport(boot_id="b")
        with suppress(Stale):
            await self._cluster.node(NODE)
        pod = await self._cluster.pod(self._pod)
        status = msgspec.structs.replace(
            make_status(Phase.ACTIVE),
            pod_uid=pod.metadata.uid,
            node_name=NODE,
            node_uid=None,
            active_since=timestamp(utc_now()),
        )
        await _side_by_side(lambda number: self._create(number, status), range(size))

    async def remove(self) -> None:
        """Remove every Session, whatever became of it."""
        await _side_by_side(self._remove, [one.metadata.name for one in self.rig.sessions])

    async def run(self) -> None:
        """Keep a gateway alive, and bring the beats of those who beat."""
        while True:
            await self._gateways.announce(GATEWAY, timedelta(seconds=10))
            beating = iter(tuple(self.beating))
            while some := tuple(islice(beating, BEATS_AT_ONCE)):
                await self._clients.beats([(uid, DIGEST) for uid in some], GATEWAY)
            await asyncio.sleep(0.5)

    @property
    def ended(self) -> set[str]:
        """Those who are not Active any more."""
        return set(self.uids) - {one.metadata.uid for one in self._active()}

    @property
    def told(self) -> int:
        """How many say that they are held."""
        return sum(holds(one.status, ConditionType.EXPIRY_PAUSED) for one in self._active())

    def _active(self) -> list[Session]:
        return [one for one in self.rig.sessions if one.status.phase is Phase.ACTIVE]

    async def _remove(self, name: str) -> None:
        await self._cluster.patch("sessions", name, {"metadata": {"finalizers": None}})
        await self._cluster.delete("sessions", name)

    async def _create(self, number: int, status: SessionStatus) -> None:
        name, pods = f"{self._pod}-{number}", [{"name": self._pod, "onRelease": "None"}]
        session = await self._cluster.session(name, finalizers=(FINALIZER,), podRefs=pods, **SPEC)
        written = await self._writer.record_status(session.metadata, status)
        self.rig.sessions.keep(written)
        await self.rig.records.open(written, written.status)
        await self._clients.mint(written.metadata.uid, DIGEST, TOKEN_LIFE)
        self.uids.append(written.metadata.uid)


async def _side_by_side(act: Callable[[Any], Awaitable[object]], items: Iterable[Any]) -> None:
    permits = asyncio.Semaphore(AT_ONCE)

    async def one(item: Any) -> None:
        async with permits:
            await act(item)

    await asyncio.gather(*(one(item) for item in items))
