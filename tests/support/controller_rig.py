"""The controller's objects, joined as its main.py joins them, without Kopf's watch.

A test puts Sessions into the cache as the watch would. Apiserver and Redis are real; the
agent is the fake one. Reflectors run only where a test runs them.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from tests.support.cluster import kube_client
from tests.support.control_plane import ControlPlane
from tests.support.fake_agent import FakeAgent

from gpusession.agent_client import AgentClient
from gpusession.api.cluster import Node, Pod
from gpusession.api.session import USE_LABEL, Session
from gpusession.controller.actions import Performer
from gpusession.controller.authority import AgentAuthority
from gpusession.controller.intake import Intake
from gpusession.controller.leader import Leader, Periods
from gpusession.controller.liveness import LivenessWatch
from gpusession.controller.observer import Observer
from gpusession.controller.queue import DestroyQueue
from gpusession.controller.sessions import SessionCache
from gpusession.controller.sweep import Sweep
from gpusession.controller.worker import Worker
from gpusession.kube.client import KubeClient
from gpusession.kube.leases import LeaseClient
from gpusession.kube.reader import KubeReader
from gpusession.kube.reflector import Reflector
from gpusession.kube.writer import KubeWriter
from gpusession.rules.observation import Limits
from gpusession.settings import ControllerSettings
from gpusession.store.clearing import StateClearer
from gpusession.store.client import RedisClient
from gpusession.store.sessions import SessionStore

AGENT_NAME = "gpusession-agent.gpusession-agents.svc"
NODE = "nowhere"
"""The node that the harness' Pods name; the fake agent is its agent."""


PATIENT = Periods(
    lease=timedelta(minutes=5), renew=timedelta(minutes=4), retry=timedelta(milliseconds=20)
)
"""A reign that outlasts every test; the rig renews nothing."""


def utc_now() -> datetime:
    """Read the clock as main.py does."""
    return datetime.now(UTC)  # noqa: TID251 - as main.py


@dataclass(frozen=True)
class Surroundings:
    """What the rig runs among."""

    plane: ControlPlane
    kubeconfig: Path
    redis_url: str
    api_timeout: float = 5.0


class ControllerRig:
    """One controller; the with block ends its connections."""

    def __init__(self, around: Surroundings, **settings: Any) -> None:
        self._around = around
        self._stack = AsyncExitStack()
        self.clock = utc_now
        self.rebound: list[str] = []
        self.observed: set[str] = set()
        self.settings = ControllerSettings(identity="rig", **settings)

    async def __aenter__(self) -> Self:
        plane, enter = self._around.plane, self._stack.enter_async_context
        self.client = await enter(
            kube_client(self._around.kubeconfig, timeout=self._around.api_timeout)
        )
        self.redis = await enter(RedisClient(self._around.redis_url, timeout=timedelta(seconds=2)))
        self.listener = await enter(
            RedisClient(self._around.redis_url, timeout=timedelta(seconds=2), connections=1)
        )
        await self.redis.call("FLUSHALL")
        self.agent = await enter(FakeAgent(plane.certificate("agent", sans=[AGENT_NAME])))
        token = self._around.kubeconfig.with_name("gpusession-system-gpusession-controller.token")
        self.agents = AgentClient(
            self.locate,
            tls=AgentAuthority(plane.ca_file).context,
            server_name=AGENT_NAME,
            token_file=token,
            timeout=timedelta(seconds=2),
        )
        self._stack.push_async_callback(self.agents.close)
        self.leader = Leader(
            LeaseClient(self.client, namespace="gpusession-system", name="gpusession-controller"),
            identity="rig",
            periods=PATIENT,
            clock=utc_now,
        )
        await self.leader.acquire()
        self._join()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _join(self) -> None:
        self.sessions = SessionCache()
        self.queue = DestroyQueue(
            retry_base=timedelta(milliseconds=50), retry_cap=timedelta(seconds=1)
        )
        self._stack.callback(self.queue.close)
        self.intake = Intake(self.sessions, self.queue)
        self.pods = Reflector(self.client, "/api/v1/pods", kind=Pod, selector=USE_LABEL)
        self.nodes = Reflector(self.client, "/api/v1/nodes", kind=Node)
        self.store = SessionStore(self.redis)
        self.liveness = LivenessWatch(
            self.settings,
            self.redis,
            self.listener,
            sessions=self.sessions,
            intake=self.intake,
            agents=self.agents,
            clock=self._now,
        )
        self.records = self.liveness.records
        self.observer = self._make_observer(self.client)
        self.performer = self.make_performer(StateClearer(self.redis))
        self.worker = self.make_worker(self.client)
        self.sweep = self.make_sweep(self.client)

    def locate(self, node: str) -> str | None:
        """Tell where a node's agent is; only NODE has one."""
        return self.agent.url if node == NODE else None

    def _now(self) -> datetime:
        return self.clock()

    def _make_observer(self, client: KubeClient) -> Observer:
        return Observer(
            KubeReader(client),
            pods=self.pods,
            nodes=self.nodes,
            locate=self.locate,
            lives=self.liveness.lives.look,
            observes=lambda namespace: namespace in self.observed,
        )

    def make_worker(self, client: KubeClient) -> Worker:
        """Give a worker that looks through this client and writes through the rig's own."""
        return Worker(
            queue=self.queue,
            sessions=self.sessions,
            observer=self._make_observer(client),
            performer=self.performer,
            clock=self._now,
            limits=Limits(),
            intake=self.intake,
        )

    def make_performer(self, clearer: StateClearer | None) -> Performer:
        """Give a performer that clears state so."""
        return Performer(
            writer=KubeWriter(self.client),
            agents=self.agents,
            records=self.records,
            clearer=clearer,
            sessions=self.sessions,
            leader=self.leader,
            clock=self._now,
        )

    def make_sweep(self, client: KubeClient, **changed: Any) -> Sweep:
        """Give a sweep over the list that this client sees."""
        period = timedelta(milliseconds=20)
        return Sweep(
            reader=KubeReader(client),
            sessions=self.sessions,
            intake=self.intake,
            records=self.records,
            rebind=self.rebound.append,
            **{"period": period, "rebind_period": period} | changed,
        )

    def watch_says(self, session: Session) -> None:
        """Take in a Session as Kopf's handler does."""
        self.intake.watched(session)

    async def waiting_keys(self) -> set[str]:
        """Take out all keys that are ready."""
        found = set()
        while self.queue._waiting:
            key, _ = await self.queue.get()
            self.queue.done(key)
            found.add(key)
        return found
