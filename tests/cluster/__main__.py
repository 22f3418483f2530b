"""`python -m tests.cluster COMMAND`: the real cluster of this machine, as root.

up, down, status; `obstacles` says what stands against one on this machine, or nothing;
packages and images prepare it; `load ARCHIVE` puts an image on all nodes, `kubectl ...` and
`enter NODE ...` run a program in it, `kill NODE` and `boot NODE` are a node's power switch.
`up` also builds the product's image and brings it to the nodes, ready to be installed.
"""

import argparse
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.cluster import images, packages, readme, suitability
from tests.cluster.real_cluster import RealCluster
from tests.support.image import DEBIAN, archive_of, build_image
from tests.support.processes import ProcessFailedError
from tests.support.toolchain import REPOSITORY, AssetMissingError

_AFTER_UP = """
The cluster is up. From this folder, as README says:

{installing}
{trying}
Other clients reach it by `inside`, which is in that PATH too: inside helm list
A node's power, and a shell on it: .venv/bin/python -m tests.cluster kill|boot|enter node-2
Take it down with make cluster-down.
"""


def main() -> int:
    """Do what was asked for; an `up` that is told to end takes down what it has made."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("command", choices=sorted(_COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    try:
        return _COMMANDS[asked.command](asked.arguments)
    except (AssetMissingError, ProcessFailedError) as error:
        print(f"[gpusession] {error}", file=sys.stderr)
        return 1


def _up(_: list[str]) -> int:
    packages.require()
    archive = archive_of(build_image(DEBIAN), REPOSITORY / "dist" / "gpusession.tar")
    RealCluster().up(archive)
    lines = (textwrap.indent(block, "  ") for block in (readme.installing(), readme.trying()))
    print(_AFTER_UP.format(installing=next(lines), trying=next(lines)), end="")
    return 0


def _down(_: list[str]) -> int:
    RealCluster().down()
    return 0


def _status(_: list[str]) -> int:
    cluster = RealCluster()
    if not cluster.exists:
        print("there is no cluster")
        return 1
    for name, runs in cluster.processes().items():
        print(f"{name}: {'runs' if runs else 'is gone'}")
    print(cluster.kubectl("get", "nodes", "--output=wide").stdout, end="")
    return 0


def _obstacles(_: list[str]) -> int:
    for obstacle in suitability.obstacles():
        print(obstacle)
    return 0


def _packages(_: list[str]) -> int:
    packages.install()
    return 0


def _images(_: list[str]) -> int:
    for archive in images.archives():
        print(archive)
    return 0


def _load(arguments: list[str]) -> int:
    for archive in arguments:
        RealCluster().load_image(Path(archive))
    return 0


def _kill(nodes: list[str]) -> int:
    for node in nodes:
        RealCluster().kill_node(node)
    return 0


def _boot(nodes: list[str]) -> int:
    for node in nodes:
        RealCluster().boot_node(node)
    return 0


def _kubectl(arguments: list[str]) -> int:
    return subprocess.call(RealCluster().kubectl_program.command(*arguments))


def _enter(arguments: list[str]) -> int:
    node, *command = arguments
    prefix = RealCluster().nodes[node].command_prefix()
    return subprocess.call([*prefix, *(command or ["bash"])])


_COMMANDS = {
    "boot": _boot,
    "down": _down,
    "enter": _enter,
    "images": _images,
    "kill": _kill,
    "kubectl": _kubectl,
    "load": _load,
    "obstacles": _obstacles,
    "packages": _packages,
    "status": _status,
    "up": _up,
}

if __name__ == "__main__":
    sys.exit(main())
