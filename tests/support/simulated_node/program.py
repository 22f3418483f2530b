"""Starts the simulated kubelet as a program, known to a control plane as a real node is."""

import sys
from pathlib import Path

from tests.support.control_plane import ControlPlane
from tests.support.nvml_simulator import build_nvml_simulator
from tests.support.processes import Process, wait_until
from tests.support.toolchain import c_compiler

START_SECONDS = 15.0
"""It takes one second, most of it imports."""


class KubeletProgram:
    """One simulated node; its files are below `root`, which must be a short path.

    The kubelet calls the apiserver as `system:node:<name>`, so NodeRestriction binds it.
    """

    def __init__(
        self,
        name: str,
        *,
        plane: ControlPlane,
        folder: Path,
        libraries: Path | None = None,
        address: str = "127.0.0.11",
        devices: int = 2,
        device_memory: str = "80Gi",
    ) -> None:
        self.name = name
        self.root = folder / "node"
        self.libraries = libraries or folder / "lib"
        folder.mkdir(parents=True, exist_ok=True)
        build_nvml_simulator(self.libraries, cc=c_compiler())
        arguments = {
            "node": name,
            "kubeconfig": plane.kubeconfig_for_node(name),
            "root": self.root,
            "address": address,
            "devices": devices,
            "device-memory": device_memory,
            "nvml-library-dir": self.libraries,
        }
        command = [sys.executable, "-m", "tests.support.simulated_kubelet"]
        self.process = Process(
            [*command, *(f"--{key}={value}" for key, value in arguments.items())],
            log=folder / "kubelet.log",
            cwd=Path(__file__).resolve().parents[3],
        )
        self._starts = 0

    def start(self) -> None:
        """Boot the node; return when it is registered."""
        self.process.start()
        self._starts += 1
        wait_until(
            lambda: self.process.log.read_text().splitlines().count("ready") == self._starts,
            timeout=START_SECONDS,
            what=f"{self.name} to be registered",
            processes=[self.process],
        )

    def stop(self) -> None:
        """Shut the node down; its Pods stay in the apiserver as they are."""
        self.process.stop()

    def kill(self) -> None:
        """Pull the plug: SIGKILL, and the kernel ends what ran under it."""
        self.process.kill()

    def pids(self, pod_uid: str) -> list[int]:
        """Give the pids that a Pod's cgroup lists, nested cgroups included."""
        files = self.root.glob(f"cgroup/kubepods/**/pod{pod_uid}/**/cgroup.procs")
        return [int(pid) for file in files for pid in file.read_text().split()]
