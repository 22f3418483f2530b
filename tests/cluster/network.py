"""The machines' network: a namespace per node, joined by one cable, linked to nothing else.

The control plane lives in the first node's. Namespaces are files below the cluster's own
folder, so `ip netns` neither lists nor mounts anything.
"""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.cluster.record import Identity
from tests.support.processes import start_time

SERVICE_RANGE = "10.96.0.0/16"
POD_RANGE = "10.244.0.0/16"
DNS_ADDRESS = "10.96.0.10"
CABLE = "node0"


def address(number: int) -> str:
    """Give the address of a node."""
    return f"10.250.0.{number}"


def pod_range(number: int) -> str:
    """Give the addresses of a node's pods."""
    return f"10.244.{number}.0/24"


class Network:
    """Two network namespaces and the cable between them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def namespace(self, number: int) -> Path:
        """Give the file that stands for a node's network."""
        return self._folder / f"node-{number}"

    def create(self) -> None:
        """Make both namespaces; each reaches the other's node and pods, and nothing else."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for number in (1, 2):
            self.namespace(number).touch()
            _run("unshare", f"--net={self.namespace(number)}", "true")
        peer = ("peer", "name", CABLE, "netns", str(self.namespace(2)))
        self._inside(1, "ip", "link", "add", CABLE, "type", "veth", *peer)
        for number, other in ((1, 2), (2, 1)):
            self._inside(number, "ip", "address", "add", f"{address(number)}/24", "dev", CABLE)
            self._inside(number, "ip", "link", "set", "lo", "up")
            self._inside(number, "ip", "link", "set", CABLE, "up")
            self._inside(number, "ip", "route", "add", pod_range(other), "via", address(other))
            self._inside(number, "ip", "route", "add", "default", "via", address(other))
            self._inside(number, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")

    def processes(self) -> list[Identity]:
        """Find whatever still runs in one of the namespaces: nobody else could be there."""
        ours = {self.namespace(number).stat().st_ino for number in self._existing()}
        found = []
        for pid in (int(entry.name) for entry in Path("/proc").glob("[0-9]*")):
            with suppress(OSError):
                born = start_time(pid)
                if Path(f"/proc/{pid}/ns/net").stat().st_ino in ours and born is not None:
                    found.append((pid, born))
        return found

    def remove(self) -> None:
        """Let the namespaces go; the kernel takes cable, bridges and rules with them."""
        for number in self._existing():
            _run("umount", str(self.namespace(number)))

    def _existing(self) -> list[int]:
        return [number for number in (1, 2) if os.path.ismount(self.namespace(number))]

    def _inside(self, number: int, *argv: str) -> None:
        _run("nsenter", f"--net={self.namespace(number)}", *argv)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)
