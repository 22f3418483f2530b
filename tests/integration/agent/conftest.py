"""A simulated GPU node for the real pynvml, and real processes that hold its memory."""

import ctypes
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support import nvml_simulator
from tests.support.agent_rig import AgentRig
from tests.support.nvml_simulator import SimulatedNode, build_nvml_simulator
from tests.support.toolchain import c_compiler

GPU = "GPU-5a2c0000-0000-4000-8000-000000000000"
OTHER_GPU = "GPU-5a2c0000-0000-4000-8000-000000000001"


@pytest.fixture(scope="session")
def simulated_nvml(pytestconfig: pytest.Config) -> Path:
    """Load the simulator into this process and give its folder.

    glibc finds a library that is loaded already by its soname alone, so pynvml's own
    CDLL("libnvidia-ml.so.1") gets this one without LD_LIBRARY_PATH.
    """
    out_dir = pytestconfig.rootpath / ".cache" / "nvml_sim"
    library = build_nvml_simulator(out_dir, cc=c_compiler())
    ctypes.CDLL(str(library), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
    return out_dir


@pytest.fixture
def node(
    simulated_nvml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimulatedNode]:
    """Make this process see a fresh node with two GPUs; hangs end with the test."""
    node = SimulatedNode(tmp_path / "node")
    node.add_device(GPU)
    node.add_device(OTHER_GPU)
    for name, value in node.environment(simulated_nvml).items():
        monkeypatch.setenv(name, value)
    yield node
    node.clear_faults()


@pytest.fixture
def start_holder(node: SimulatedNode) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Give a way to start processes that hold memory of GPU until they die."""
    with ExitStack() as stack:

        def start(size: int, *, kind: str = "compute") -> subprocess.Popen[str]:
            program = [sys.executable, "-I", "-S", nvml_simulator.__file__]
            asked = [str(node.state_dir), GPU, str(size), "--kind", kind]
            holder = subprocess.Popen([*program, *asked], stdout=subprocess.PIPE, text=True)
            stack.enter_context(holder)
            stack.callback(holder.kill)
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holding\n"
            return holder

        yield start


@pytest.fixture
async def rig(node: SimulatedNode, tmp_path: Path) -> AsyncIterator[AgentRig]:
    """Give an agent, its node and a fake apiserver; all processes end with the test."""
    async with AgentRig(node, tmp_path) as rig:
        yield rig
