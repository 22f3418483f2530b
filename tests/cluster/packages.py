"""The Debian packages under a real node: which are missing, and their installation.

Looked for by program, not by package: whoever brings another containerd keeps it.
"""

import os
import shutil
from pathlib import Path

from tests.support.processes import Process
from tests.support.progress import progress, say
from tests.support.toolchain import AssetMissingError, cache_root

CNI_PROGRAMS = Path("/usr/lib/cni")
"""Where Debian puts the CNI plugins."""

_PACKAGE_OF = {
    "containerd": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "nft": "nftables",
    "iptables": "iptables",  # the portmap plugin calls it, also to take nothing away
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    str(CNI_PROGRAMS / "bridge"): "containernetworking-plugins",
    str(CNI_PROGRAMS / "portmap"): "containernetworking-plugins",
}
APT_SECONDS = 900.0
"""One minute on a good line; a package mirror far away may need ten."""


def missing_packages() -> list[str]:
    """Name the packages whose programs are not here."""
    absent = {package for program, package in _PACKAGE_OF.items() if shutil.which(program) is None}
    return sorted(absent)


def require() -> None:
    """Refuse, with what would help, where real nodes cannot run."""
    if os.geteuid() != 0:
        raise AssetMissingError("a real cluster makes namespaces, mounts and cgroups: be root")
    if missing := missing_packages():
        raise AssetMissingError(
            f"these Debian packages are missing: {' '.join(missing)}\n"
            "`python -m tests.cluster packages` (make cluster-packages) installs them, as root"
        )


def install() -> None:
    """Install what is missing with apt-get, as root."""
    missing = missing_packages()
    if not missing:
        say("all packages of a real node are here")
        return
    if os.geteuid() != 0:
        raise AssetMissingError(f"only root can install {' '.join(missing)}")
    if shutil.which("apt-get") is None:
        raise AssetMissingError(f"no apt-get here: install {' '.join(missing)} your own way")
    cache_root().mkdir(parents=True, exist_ok=True)
    _apt_get("update")
    _apt_get("install", "--yes", "--no-install-recommends", *missing)


def _apt_get(*arguments: str) -> None:
    log = cache_root() / "apt-get.log"
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    process = Process(["apt-get", "--quiet", *arguments], log=log, env=env)
    with progress(f"apt-get {' '.join(arguments)}"), process:
        if process.wait(APT_SECONDS):
            raise AssetMissingError(f"apt-get {arguments[0]} failed:\n{process.log_tail(30)}")
