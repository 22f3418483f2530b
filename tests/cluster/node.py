"""A machine that is a set of namespaces: its programs, its disk, its power switch.

The disk is a folder and survives a power cut; processes and mounts do not.
"""

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from tests.cluster import cgroups, network, node_config
from tests.cluster.device_plugin_stubs import python_path
from tests.cluster.record import Record
from tests.support.assets import cluster_assets
from tests.support.control_plane import ControlPlane
from tests.support.nvml_simulator import SimulatedNode, build_nvml_simulator
from tests.support.processes import Process, ProcessFailedError, wait_until
from tests.support.toolchain import REPOSITORY, c_compiler

GPUS_PER_NODE = 8
BOOT_SECONDS = 60.0
"""containerd answers after half a second; a busy machine takes longer."""

_HERE = Path(__file__).parent
_UNSHARE = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child")
_ALL_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
_DISK = ("bin", "etc", "containerd", "opt", "volume-plugins", *node_config.MOUNTS)
_WRITABLE_BY_PODS = 0o777
"""A workload writes what it holds as whatever user it runs."""


class RealNode:
    """One node; from another shell as well, as long as the record knows it."""

    def __init__(self, number: int, folder: Path, *, namespace: Path, record: Record) -> None:
        self.number = number
        self.name = f"node-{number}"
        self.folder = folder
        self.gpus = [
            f"GPU-00000000-0000-4000-8000-{number:06d}{index:06d}" for index in range(GPUS_PER_NODE)
        ]
        self._cgroup = f"gpusession-{self.name}"
        self._namespace = namespace
        self._record = record
        self._outer: Process | None = None

    def install(self, plane: ControlPlane) -> None:
        """Write the disk of a node that joins this cluster at its first boot."""
        for name in _DISK:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for place in node_config.MOUNTS.values():
            self._record.make_folder(Path(place))
        self._install_gpus()
        shutil.copy(_HERE / "node_runtime.py", self.folder / "bin")
        for name in node_config.RUNTIMES:
            shutil.copy(_HERE / "node_runtime.sh", self.folder / "bin" / name)
        etc = self.folder / "etc"
        (etc / "resolv.conf").touch()
        mounts = "".join(f"{own} {place}\n" for own, place in node_config.MOUNTS.items())
        (etc / "mounts").write_text(mounts, encoding="utf-8")
        (etc / "containerd.toml").write_text(node_config.containerd(self.folder), encoding="utf-8")
        serving = plane.certificate(self.name, sans=(self.name, network.address(self.number)))
        kubelet = node_config.kubelet(
            self.folder, cgroup=self._cgroup, ca_file=plane.ca_file, serving=serving
        )
        node_config.write_json(etc / "kubelet.json", kubelet)
        node_config.write_json(
            etc / "kube-proxy.json", node_config.kube_proxy(self.folder, self.name)
        )
        node_config.write_json(
            self.folder / "cni-config" / "10-pods.conflist", node_config.cni(self.number)
        )
        node_config.write_kubelet_login(etc, plane.kubeconfig_for_node(self.name))
        shutil.move(plane.kubeconfig_for_user("system:kube-proxy"), etc / "kube-proxy.kubeconfig")

    def _install_gpus(self) -> None:
        build_nvml_simulator(self.folder / "simulator" / "lib", cc=c_compiler())
        gpus = SimulatedNode(self.folder / "simulator" / "state")
        for gpu in self.gpus:
            gpus.add_device(gpu)
        for folder in (gpus.state_dir, *gpus.state_dir.iterdir()):
            if folder.is_dir():
                folder.chmod(_WRITABLE_BY_PODS)

    def boot(self) -> None:
        """Switch it on; return when containerd takes images."""
        for name in node_config.VOLATILE:
            shutil.rmtree(self.folder / name)
            (self.folder / name).mkdir()
        self._boot_id_file.write_text(f"{uuid.uuid4()}\n", encoding="ascii")
        cgroups.create(self._cgroup)
        environment = {
            "NODE_DIR": str(self.folder),
            "NODE_NAME": self.name,
            "NODE_ADDRESS": network.address(self.number),
            "PROGRAMS": str(cluster_assets()),
            "PYTHON": sys.executable,
            "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *python_path()))),
        }
        self._outer = outer = Process(
            [
                "nsenter",
                f"--net={self._namespace}",
                *_UNSHARE,
                "--mount-proc",
                "bash",
                _HERE / "node_init.sh",
            ],
            log=self.folder / "log" / "init.log",
            env=os.environ | environment,
            outlives=True,
        )
        outer.name = self.name
        outer.start()
        self._record.add_started([outer])
        wait_until(
            lambda: self._children(outer.pid),
            timeout=BOOT_SECONDS,
            what=f"process 1 of {self.name}",
            processes=[outer],
        )
        [init] = self._children(outer.pid)
        self._record.add_process(self._init_name, init)
        wait_until(
            lambda: not self.enter("ctr", "version", check=False).returncode,
            timeout=BOOT_SECONDS,
            what=f"containerd of {self.name}",
            processes=[outer],
            period=0.1,
        )

    def kill(self) -> None:
        """Cut the power: process 1 dies, and with it every process and mount of the node."""
        self._record.end([self._init_name, self.name])
        self.collect()
        cgroups.remove(self._cgroup)

    def collect(self) -> None:
        """Bury the node's outermost process, which is dead, where it is a child of ours."""
        if self._outer is not None:
            self._outer.kill()
            self._outer = None

    @property
    def boot_id(self) -> str:
        """Which boot this is, as everything on the node is told."""
        return self._boot_id_file.read_text(encoding="ascii").strip()

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return self._record.is_running(self._init_name)

    def enter(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program on the node, with its pids, mounts, network and name, to its end."""
        done = subprocess.run(
            [*self.command_prefix(), *argv], capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise ProcessFailedError(f"{argv[0]} on {self.name}: {done.stderr or done.stdout}")
        return done

    def command_prefix(self) -> list[str]:
        """Give the start of a command line that runs on the node."""
        if not self.is_on:
            raise ProcessFailedError(f"{self.name} has no power")
        pid, _ = self._record.processes[self._init_name]
        return ["nsenter", f"--target={pid}", *_ALL_NAMESPACES, "--"]

    def load_image(self, archive: Path) -> None:
        """Put the images of a docker-archive on the node's disk, where they stay."""
        self.enter("ctr", "--namespace=k8s.io", "images", "import", archive.resolve())

    def logs(self) -> list[Path]:
        """List what the node's own programs write to."""
        return sorted((self.folder / "log").glob("*.log"))

    @property
    def _boot_id_file(self) -> Path:
        return self.folder / "etc" / "boot-id"

    @property
    def _init_name(self) -> str:
        return f"{self.name}/init"

    @staticmethod
    def _children(pid: int | None) -> list[int]:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return [int(child) for child in children.read_text(encoding="ascii").split()]
