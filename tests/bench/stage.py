"""What a benchmark of the whole operator stands on: all of it real, but for the agent.

An agent of the test's binds at once and answers every release: what real processes cost to
end is none of these benchmarks' question.
"""

import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from tests.bench import idlers
from tests.bench.idlers import Watcher
from tests.support.builders import make_bind, make_release
from tests.support.cluster import Cluster, kube_client, running
from tests.support.fake_agent import FakeAgent
from tests.support.operator_stack import AGENT_SERVER_NAME, AGENTS, HOST, OperatorStack
from tests.support.session_api import create_namespace

from gpusession.store.client import RedisClient

NAMESPACE, NODE = "bench", "nowhere"


@dataclass(frozen=True, slots=True)
class Stage:
    """A controller, its apiserver and Redis, gateways, and an admin who looks on."""

    stack: OperatorStack
    agent: FakeAgent
    cluster: Cluster
    redis: RedisClient
    watcher: Watcher

    def controller_metric(self, name: str) -> float:
        """Read a metric of the controller, summed up over its labels."""
        return metric(self.stack.controller_metrics_port, name)


@asynccontextmanager
async def stage(
    *, controller: Mapping[str, str], gateways: int = 0, gateway: Mapping[str, str] | None = None
) -> AsyncIterator[Stage]:
    """Start it with these settings, and follow the Sessions of its namespace."""
    with OperatorStack(
        nodes=(), controller_settings=controller, gateways=gateways, gateway_settings=gateway
    ) as stack:
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
            watcher = Watcher(cluster)
            await enter(running(watcher.run()))
            yield Stage(stack, agent, cluster, redis, watcher)


def metric(port: int, name: str) -> float:
    """Read a metric of one process, summed up over its labels."""
    url = f"http://{HOST}:{port}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.partition(" ")[0].partition("{")[0] == name]
    return sum(float(line.rpartition(" ")[2]) for line in found)
