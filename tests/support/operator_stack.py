"""The whole product on one machine: control plane, Redis, simulated nodes, agents, controller.

Demo, tests and benchmarks start the same stack; each of its programs can be killed and
started again on its own. Nothing needs root, and nothing listens beyond loopback.
"""

import json
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import redis
from tests.support import assets, nvml_simulator, session_api
from tests.support.clock_shift import ShiftedClock
from tests.support.control_plane import ControlPlane
from tests.support.pki import Certificate
from tests.support.processes import Process, free_port, wait_until
from tests.support.progress import progress, say
from tests.support.redis_server import RedisServer
from tests.support.simulated_node.program import KubeletProgram
from tests.support.stack_gateway import StackGateway
from tests.support.tcp_proxy import TcpProxy
from tests.support.toolchain import REPOSITORY, cache_root

HOST = "127.0.0.1"
SYSTEM, AGENTS = "gpusession-system", "gpusession-agents"
CONTROLLER_ACCOUNT = f"system:serviceaccount:{SYSTEM}:gpusession-controller"
AGENT_ACCOUNT = f"system:serviceaccount:{AGENTS}:gpusession-agent"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/gpusession-controller"
AGENT_SERVER_NAME = f"gpusession-agent.{AGENTS}.svc"
AUDIENCE = "gpusession-agent"

START_SECONDS = 60.0
"""Python with kopf and kubernetes imports in 2 s on two busy cores."""


@dataclass
class Node:
    """One simulated node: where its files lie, its kubelet, its agent."""

    name: str
    kubelet: KubeletProgram
    agent: Process
    agent_tls: Certificate
    agent_port: int
    agent_metrics_port: int

    @property
    def root(self) -> Path:
        """What the simulated kubelet keeps: cgroup, proc, nvml, pod-resources."""
        return self.kubelet.root

    @property
    def nvml_state(self) -> Path:
        """The state directory of this node's NVML simulator."""
        return self.root / "nvml"

    @property
    def ledger(self) -> Path:
        """The agent's SQLite file."""
        return self.root.parent / "ledger.sqlite"


class OperatorStack:
    """Everything started, in order, by the with block; stopped in reverse.

    `controller_settings`, `agent_settings` and `gateway_settings` are further GPUSESSION_*
    values, without the prefix. With `links`, controller and gateways reach the records by
    links of their own, which a test can cut: `records_link` and each gateway's `link`; the
    records' clock can be moved; and clients find all gateways behind `front_url`.
    """

    def __init__(
        self,
        *,
        nodes: tuple[str, ...] = ("node-a", "node-b"),
        workdir: Path | None = None,
        controller_settings: Mapping[str, str] | None = None,
        agent_settings: Mapping[str, str] | None = None,
        gateways: int = 0,
        gateway_settings: Mapping[str, str] | None = None,
        links: bool = False,
    ) -> None:
        self._owns_workdir = workdir is None
        self.workdir = workdir or Path(tempfile.mkdtemp(prefix="gpusession-stack-"))
        self.plane = ControlPlane(self.workdir / "control-plane")
        self.nodes: dict[str, Node] = {}
        self.controller_metrics_port = free_port()
        self.agent_ca_file = self.workdir / "agent-ca.crt"
        self._names = nodes
        self._controller_settings = dict(controller_settings or {})
        self._agent_settings = dict(agent_settings or {})
        self._gateways = gateways
        self._gateway_settings = dict(gateway_settings or {})
        self.gateways: list[StackGateway] = []
        self._links = links
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.stop)
            self.start()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all of it and return when agents and controller are ready."""
        self.nvml_library = nvml_simulator.build_nvml_simulator(
            cache_root() / "nvml-simulator", cc=assets.c_compiler()
        ).parent
        self._undo.enter_context(self.plane)
        shutil.copy(self.plane.ca_file, self.agent_ca_file)
        with progress("installing CRD, RBAC and admission policies"):
            session_api.install(self.plane)
        self.clock = ShiftedClock(self.workdir / "records-clock")
        self.records = self._undo.enter_context(self.records_server("records"))
        self.state = self._undo.enter_context(
            RedisServer(assets.redis_server(), self.workdir / "state")
        )
        self.records_link = self._link(self.records.port) if self._links else None
        parts = f"{len(self._names)} simulated nodes and agents, {self._gateways} gateways"
        with progress(f"starting {parts}, the controller"):
            for name in self._names:
                self._start_node(name)
            self.controller = self.controller_process(
                "controller-0", metrics_port=self.controller_metrics_port
            )
            self._undo.callback(lambda: self.controller.stop(20))
            self.controller.start()
            self._start_gateways()
            for name in self._names:
                self.wait_agent_ready(name)
            self.wait_controller_ready()
            for gateway in self.gateways:
                self.wait_gateway_ready(gateway)

    def stop(self) -> None:
        """End everything; the order gives each program the chance to leave in good form."""
        self._undo.close()
        if self._owns_workdir:
            shutil.rmtree(self.workdir, ignore_errors=True)

    @property
    def programs(self) -> list[Process]:
        """The programs that must run as long as nobody ends them: ours, and the kubelets."""
        nodes = [(node.agent, node.kubelet.process) for node in self.nodes.values()]
        gateways = [gateway.process for gateway in self.gateways]
        return [self.controller, *(program for pair in nodes for program in pair), *gateways]

    def wait_controller_ready(self) -> None:
        """Wait until the controller has listed everything."""
        self._wait_ready(self.controller, self.controller_metrics_port)

    def revive_controller(self) -> None:
        """Start the controller again, as kubelet does, where a stalled machine has ended it."""
        if self._restart_controller():
            self.wait_controller_ready()

    def _restart_controller(self) -> bool:
        if self.controller.running:
            return False
        say(f"the controller had ended: {self.controller.log_tail(1)}")
        self.controller.kill()
        self.controller.start()
        return True

    def keep_controller(self) -> None:
        """Do as kubelet does: start the controller again where it ends; wait until it leads.

        What it cannot outlive, such as a pause that cost it its Lease, may end it a moment later,
        after one more renewal.
        """
        since = time.time() + 3

        def leads() -> bool:
            self._restart_controller()
            lease = self.plane.read(LEASE)
            renewed = lease and lease["spec"].get("renewTime")
            return bool(renewed) and datetime.fromisoformat(renewed).timestamp() > since

        wait_until(leads, timeout=START_SECONDS, what="the controller to lead", period=0.1)
        self.wait_controller_ready()

    def wait_agent_ready(self, name: str) -> None:
        """Wait until a node's agent can see its GPUs."""
        self._wait_ready(self.nodes[name].agent, self.nodes[name].agent_metrics_port)

    def wait_gateway_ready(self, gateway: StackGateway) -> None:
        """Wait until a gateway reaches Redis and follows its events."""
        self._wait_ready(gateway.process, gateway.metrics_port)

    def lead_to_records(self, port: int) -> None:
        """Lead controller and gateways to another server: the address of the records moves."""
        for link in (self.records_link, *(gateway.link for gateway in self.gateways)):
            if link is not None:
                link.lead_to(port)

    @property
    def front_url(self) -> str:
        """Where clients come, behind which the gateways take turns."""
        return f"http://{HOST}:{self.front.port}"

    def redis(self) -> "redis.Redis[str]":
        """Connect to the records as the controller does; to be closed."""
        link = self.records_link or self.records
        return redis.Redis(HOST, link.port, decode_responses=True)

    def records_server(self, name: str) -> RedisServer:
        """Give another server for records; it is not started yet."""
        environment = self.clock.environment if self._links else {}
        binary = assets.redis_server()
        return RedisServer(binary, self.workdir / name, environment=environment)

    def _link(self, *ports: int) -> TcpProxy:
        return self._undo.enter_context(TcpProxy(*ports))

    def _wait_ready(self, process: Process, port: int) -> None:
        wait_until(
            lambda: _answers(f"http://{HOST}:{port}/readyz"),
            timeout=START_SECONDS,
            what=f"{process.argv[2:5]} to be ready",
            processes=[process],
            period=0.1,
        )

    def _start_node(self, name: str) -> None:
        folder = self.workdir / name
        kubelet = KubeletProgram(
            name,
            plane=self.plane,
            folder=folder,
            libraries=self.nvml_library,
            address=HOST,
        )
        self._undo.callback(kubelet.stop)
        kubelet.start()
        port, metrics_port = free_port(), free_port()
        tls = self.plane.certificate(f"agent-{name}", sans=[AGENT_SERVER_NAME])
        agent = self._agent(kubelet, tls, port=port, metrics_port=metrics_port)
        self.nodes[name] = Node(name, kubelet, agent, tls, port, metrics_port)
        self._undo.callback(lambda: agent.stop(15))
        agent.start()
        self.plane.kubectl("apply", "-f", "-", input=json.dumps(_agent_pod(name, port)))

    def _agent(
        self, kubelet: KubeletProgram, tls: Certificate, *, port: int, metrics_port: int
    ) -> Process:
        name, root = kubelet.name, kubelet.root
        kubeconfig = self.plane.kubeconfig_for_service_account(
            AGENTS, "gpusession-agent", self.workdir / "accounts"
        )
        environment = {
            "NODE_NAME": name,
            "KUBECONFIG": str(kubeconfig),
            "LISTEN_HOST": HOST,
            "PORT": str(port),
            "METRICS_PORT": str(metrics_port),
            "TLS_CERT_FILE": str(tls.cert),
            "TLS_KEY_FILE": str(tls.key),
            "LEDGER_FILE": str(root.parent / "ledger.sqlite"),
            "POD_RESOURCES_SOCKET": str(root / "pod-resources" / "kubelet.sock"),
            "STATE_REDIS_URL": self.state.url,
            "DEMO_MODE": "true",
            "PROC_ROOT": str(root / "proc"),
            "CGROUP_ROOT": str(root / "cgroup"),
        }
        return Process(
            [sys.executable, "-m", "gpusession", "agent"],
            log=root.parent / "agent.log",
            env=_python_environment()
            | _settings(environment | self._agent_settings)
            | nvml_simulator.environment(root / "nvml", self.nvml_library),
            cwd=REPOSITORY,
        )

    def _start_gateways(self) -> None:
        if not self._gateways:
            return
        kubeconfig = self.plane.kubeconfig_for_service_account(
            SYSTEM, "gpusession-gateway", self.workdir / "accounts"
        )
        for number in range(self._gateways):
            link = self._link(self.records.port) if self._links else None
            redis_port = self.records.port if link is None else link.port
            port, metrics_port = free_port(), free_port()
            environment = {
                "IDENTITY": f"gateway-{number}",
                "KUBECONFIG": str(kubeconfig),
                "LISTEN_HOST": HOST,
                "PORT": str(port),
                "METRICS_PORT": str(metrics_port),
                "REDIS_URL": f"redis://{HOST}:{redis_port}/0",
            }
            process = Process(
                [sys.executable, "-m", "gpusession", "gateway"],
                log=self.workdir / f"gateway-{number}.log",
                env=_python_environment() | _settings(environment | self._gateway_settings),
                cwd=REPOSITORY,
            )
            self.gateways.append(StackGateway(process, port, metrics_port, link))
            self._undo.callback(process.stop, 15)
            process.start()
        self.front = self._link(*(gateway.port for gateway in self.gateways))

    def controller_process(self, name: str, *, metrics_port: int) -> Process:
        """Give a controller of this name in the Lease; it is not started yet."""
        account = (SYSTEM, "gpusession-controller")
        environment = {
            "KUBECONFIG": str(
                self.plane.kubeconfig_for_service_account(*account, self.workdir / "accounts")
            ),
            "LISTEN_HOST": HOST,
            "METRICS_PORT": str(metrics_port),
            "IDENTITY": name,
            "REDIS_URL": self.records.url
            if self.records_link is None
            else f"redis://{HOST}:{self.records_link.port}/0",
            "STATE_REDIS_URL": self.state.url,
            "AGENT_CA_FILE": str(self.agent_ca_file),
            "AGENT_TOKEN_FILE": str(self.plane.service_account_token(*account, AUDIENCE)),
        }
        return Process(
            [sys.executable, "-m", "gpusession", "controller"],
            log=self.workdir / f"{name}.log",
            env=_python_environment() | _settings(environment | self._controller_settings),
            cwd=REPOSITORY,
        )


def _agent_pod(node: str, port: int) -> dict[str, Any]:
    """Give the Pod object by which the controller finds an agent that the harness runs."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"gpusession-agent-{node}",
            "namespace": AGENTS,
            "labels": {"app.kubernetes.io/name": "gpusession-agent"},
            "annotations": {"simulated-kubelet/unmanaged": "true"},
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "gpusession-agent",
            "containers": [
                {
                    "name": "agent",
                    "image": "gpusession.dev/agent:demo",
                    "ports": [{"name": "https", "containerPort": port}],
                }
            ],
        },
    }


def _python_environment() -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    return kept | {
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY / "operator"), str(REPOSITORY))),
        "PYTHONUNBUFFERED": "1",
    }


def _settings(values: Mapping[str, str]) -> dict[str, str]:
    return {f"GPUSESSION_{key}": value for key, value in values.items()}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own loopback
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
