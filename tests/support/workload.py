"""A GPU workload for the simulated kubelet: it holds memory until it is ended.

Its GPU comes in NVIDIA_VISIBLE_DEVICES and the node's state directory in
NVML_SIMULATOR_STATE. It prints `ready` once it holds. Imports stay few: it starts for every Pod.
"""

import argparse
import os
import signal
import time
from pathlib import Path
from types import FrameType

from tests.support.nvml_simulator import hold, work
from tests.support.simulated_node.quantity import parse_quantity


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--memory", type=parse_quantity, default=0, help="such as 6Gi")
    parser.add_argument("--kind", default="compute", choices=["compute", "graphics", "mps"])
    parser.add_argument(
        "--busy", type=int, default=0, metavar="PERCENT", help="of its GPU, from ready on"
    )
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--uid", type=int, help="become this user once it holds; needs root")
    parser.add_argument(
        "--fork-child",
        action="store_true",
        help="a child holds the memory; SIGTERM and --exit-after end only its parent",
    )
    parser.add_argument("--allocate-after", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument(
        "--ready-first", action="store_true", help="be ready before --allocate-after is over"
    )
    parser.add_argument("--exit-after", type=float, metavar="SECONDS", help="counts from ready")
    parser.add_argument("--exit-code", type=int, default=0)
    parser.add_argument(
        "--swell-after", type=float, metavar="SECONDS", help="takes ordinary memory without end"
    )
    return parser.parse_args()


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


def _allocate(asked: argparse.Namespace) -> None:
    if asked.ready_first:
        print("ready", flush=True)
    time.sleep(asked.allocate_after)
    if asked.memory:
        uuid = os.environ["NVIDIA_VISIBLE_DEVICES"]
        state_dir = Path(os.environ["NVML_SIMULATOR_STATE"])
        row = hold(state_dir, uuid, asked.memory, kind=asked.kind)
        if asked.busy:
            work(row, asked.busy)
    if asked.uid is not None:
        os.setuid(asked.uid)
    if not asked.ready_first:
        print("ready", flush=True)


def _swell() -> None:
    taken = []
    while True:
        taken.append(b"x" * 2**20)  # written to, so that it is taken and not only promised


def _pause() -> None:
    while True:
        time.sleep(1)  # in signal.pause, a signal that comes just before it is lost


def main() -> None:
    """Hold simulated GPU memory until killed, or behave worse where asked to."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if asked.ignore_sigterm else _leave)
    if asked.fork_child:
        if os.fork() == 0:
            _allocate(asked)
            _pause()
    else:
        _allocate(asked)
    if asked.swell_after is not None:
        time.sleep(asked.swell_after)
        _swell()
    if asked.exit_after is not None:
        time.sleep(asked.exit_after)
        os._exit(asked.exit_code)
    _pause()


if __name__ == "__main__":
    main()
