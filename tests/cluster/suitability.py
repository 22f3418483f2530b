"""Whether this machine can carry the real cluster: tried out, rather than guessed."""

import os
import shutil
import subprocess

from tests.cluster import cgroups, packages

NEEDED_BYTES = 4 * 10**9
"""Two nodes' disks take 2 GB; the rest is room for what else runs."""

_DISK = "/var/lib"
_UNSHARE = ("unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--mount-proc")
_TRY_MOUNTS = "mount --make-rshared / && mount -t tmpfs none /mnt && hostname trial"
_TRY_NETWORK = (
    "ip link add trial0 type veth peer name trial1 && ip link add trial2 type bridge"
    " && nft add table ip trial"
)


def obstacles() -> list[str]:
    """Say what stands against a cluster here; empty where nothing is known to."""
    if os.geteuid() != 0:
        return ["only root may make its namespaces, mounts and cgroups"]
    found = []
    if shutil.which("apt-get") is None:
        found.append("there is no apt-get: its images are made of Debian's packages")
    if why := _refusal(_TRY_MOUNTS):
        found.append(f"no namespaces with mounts of their own: {why}")
    elif not packages.missing_packages() and (why := _refusal(_TRY_NETWORK)):
        found.append(f"no network between namespaces: {why}")
    if why := cgroups.refusal():
        found.append(f"no cgroups for its nodes: {why}")
    free = shutil.disk_usage(_DISK).free
    if free < NEEDED_BYTES:
        found.append(
            f"{_DISK} has {free / 1e9:.1f} GB free, and {NEEDED_BYTES / 1e9:.0f} are needed"
        )
    return found


def _refusal(script: str) -> str:
    """Run a script in namespaces that vanish with it; say why it could not."""
    try:
        done = subprocess.run(
            [*_UNSHARE, "sh", "-c", script], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        return str(error)
    return (done.stderr.strip() or f"exit {done.returncode}") if done.returncode else ""
