"""A real Kubernetes of two nodes on one machine: containerd, kubelet, kube-proxy, DNS, GPUs.

Only the GPUs are simulated. It needs root and Debian packages. There is one per machine, and
it stays until taken down: by this object or, from any shell, by what its record says.
Beside the nodes runs a Redis for whoever installs the product, and PROGRAMS has a kubectl.
"""

import shlex
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from tests.cluster import images, node_redis, packages
from tests.cluster.network import SERVICE_RANGE, Network, address
from tests.cluster.node import RealNode
from tests.cluster.record import Record, end_processes
from tests.support.assets import cluster_assets, kubernetes_assets
from tests.support.control_plane import ControlPlane
from tests.support.control_plane_programs import Site
from tests.support.kubectl import Kubectl
from tests.support.processes import Process, ProcessFailedError, tail, wait_until
from tests.support.progress import progress, say

FOLDER = Path("/var/lib/gpusession-cluster")
PROGRAMS = FOLDER / "bin"
"""To be put into the PATH of whoever works with the cluster by hand."""

READY_SECONDS = 120.0
"""Ten seconds on two busy cores."""

_MANIFESTS = Path(__file__).parent / "manifests"


class RealCluster:
    """The cluster of this machine; in a with block it comes up and goes down again."""

    def __init__(self) -> None:
        self._network = Network(FOLDER / "network")
        self._record = Record(FOLDER / "record.json")
        self._plane_folder = FOLDER / "control-plane"
        self.kubeconfig = self._plane_folder / "admin.kubeconfig"
        self._plane: ControlPlane | None = None
        self._redis: Process | None = None
        self.nodes: dict[str, RealNode] = {}
        for number in (1, 2):
            node = RealNode(
                number,
                FOLDER / f"node-{number}",
                namespace=self._network.namespace(number),
                record=self._record,
            )
            self.nodes[node.name] = node

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def exists(self) -> bool:
        """Whether a cluster, or what is left of one, is on this machine."""
        return FOLDER.exists()

    def up(self, *more_images: Path) -> None:
        """Build what is missing and bring it up; returns when both nodes and DNS are ready.

        Its own images are on the nodes then, the workload's among them, and these archives.
        """
        packages.require()
        if self.exists:
            raise ProcessFailedError(f"{FOLDER} exists: take that cluster down first")
        kubernetes_assets()
        cluster_assets()
        archives = [*images.archives(), *more_images]
        FOLDER.mkdir(mode=0o700)
        try:
            self._bring_up(archives)
        except BaseException:
            say(f"the cluster did not come up; its nodes' logs end with\n{self.log_tails()}")
            self.down()
            raise

    def _bring_up(self, archives: Iterable[Path]) -> None:
        self._network.create()
        self._redis = node_redis.start(FOLDER / "redis", self._network.namespace(1))
        self._record.add_started([self._redis])
        self._plane = plane = ControlPlane(
            self._plane_folder,
            site=Site(
                host=address(1),
                service_range=SERVICE_RANGE,
                network=self._network.namespace(1),
                real_nodes=True,
                outlives=True,
            ),
        )
        try:
            plane.start()
        finally:
            self._record.add_started(plane.processes.values())
        self._install_programs()
        with progress("booting both nodes"):
            for node in self.nodes.values():
                node.install(plane)
            self._on_each(RealNode.boot)
            for archive in archives:
                self.load_image(archive)
        with progress("waiting for nodes, GPUs and DNS to be ready"):
            self.kubectl("apply", f"--filename={_MANIFESTS}")
            for name in self.nodes:
                self.wait_ready(name)
            self.kubectl(
                *("rollout", "status", "deployment/coredns", "--namespace=kube-system"),
                f"--timeout={READY_SECONDS:.0f}s",
            )

    def _install_programs(self) -> None:
        """Leave a kubectl for people, and `inside` for every other client: they enter the network.

        The apiserver is nowhere else, and so are the addresses of Services and Pods.
        """
        kubectl = self.kubectl_program
        settings = f"KUBECONFIG={kubectl.kubeconfig} KUBECACHEDIR={kubectl.cache} KUBERC=off"
        PROGRAMS.mkdir()
        for name, program in {"inside": "", "kubectl": f" {kubectl.program}"}.items():
            script = f'exec env {settings} {shlex.join(kubectl.prefix)} --{program} "$@"'
            (PROGRAMS / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
            (PROGRAMS / name).chmod(0o755)

    def down(self) -> None:
        """End all processes and remove every namespace, cgroup and file; harmless when down."""
        if self.exists:
            with progress("taking the cluster down"):
                self._record.end(list(self._record.processes))
                end_processes(self._network.processes())  # started, but not noted any more
                self._on_each(RealNode.kill)
                self._network.remove()
                self._record.remove_folders()
                subprocess.run(["rm", "--recursive", "--one-file-system", FOLDER], check=True)
        for node in self.nodes.values():
            node.collect()
        if self._redis is not None:
            self._redis.kill()  # all are dead: this buries our children
        if self._plane is not None:
            self._plane.stop()

    def kubectl(
        self,
        *arguments: str | Path,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as admin."""
        return self.kubectl_program(*arguments, input=input, check=check)

    @property
    def kubectl_program(self) -> Kubectl:
        """The kubectl of this cluster, which starts inside its network."""
        return Kubectl(
            kubernetes_assets() / "kubectl",
            self.kubeconfig,
            self._plane_folder / "kubectl-cache",
            ("nsenter", f"--net={self._network.namespace(1)}"),
        )

    def enter(self, node: str, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program on a node, to its end."""
        return self.nodes[node].enter(*argv)

    def kill_node(self, node: str) -> None:
        """Cut a node's power; the others notice when its lease runs out."""
        self.nodes[node].kill()

    def boot_node(self, node: str) -> None:
        """Give a node power again; it has its disk, and its images with it."""
        self.nodes[node].boot()

    def load_image(self, archive: Path) -> None:
        """Put the images of a docker-archive on all nodes."""
        self._on_each(lambda node: node.load_image(archive))

    def wait_ready(self, node: str) -> None:
        """Wait until a node, as booted last, takes pods and offers its GPUs."""
        condition = "{.status.conditions[?(@.type=='Ready')].status}"
        gpus, boot_id = "{.status.allocatable.nvidia\\.com/gpu}", "{.status.nodeInfo.bootID}"
        query = f"jsonpath={condition},{gpus},{boot_id}"
        wanted = f"True,{len(self.nodes[node].gpus)},{self.nodes[node].boot_id}"
        wait_until(
            lambda: self.kubectl("get", "node", node, "-o", query, check=False).stdout == wanted,
            timeout=READY_SECONDS,
            what=f"{node} to be ready",
            period=0.3,
        )

    def log_tails(self) -> str:
        """Give the last lines of what the nodes' programs wrote."""
        logs = [log for node in self.nodes.values() for log in node.logs()]
        return "\n".join(f"--- {log}\n{tail(log)}" for log in logs)

    def processes(self) -> dict[str, bool]:
        """Tell of each process that was noted whether it runs."""
        return {name: self._record.is_running(name) for name in self._record.processes}

    def _on_each(self, act: Callable[[RealNode], None]) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            list(threads.map(act, self.nodes.values()))
