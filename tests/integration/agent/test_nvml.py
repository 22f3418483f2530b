"""Nvml over the simulator: it says who holds, or Blind, and never mistakes one for the other."""

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pynvml
import pytest
from tests.support.nvml_simulator import SimulatedNode, hold

import gpusession
from gpusession.agent.nvml import (
    Blind,
    BlindReason,
    Device,
    GpuUse,
    Holder,
    Nvml,
    Snapshot,
    Use,
)

GPU = "GPU-5a2c0000-0000-4000-8000-000000000000"
OTHER_GPU = "GPU-5a2c0000-0000-4000-8000-000000000001"
BASE = 512 * 2**20
GIB = 2**30

COMPUTE_LIST = "nvmlDeviceGetComputeRunningProcesses_v3"
GRAPHICS_LIST = "nvmlDeviceGetGraphicsRunningProcesses_v3"
MPS_LIST = "nvmlDeviceGetMPSComputeRunningProcesses_v3"

PATIENT = timedelta(seconds=5)
IMPATIENT = timedelta(milliseconds=50)

StartHolder = Callable[..., subprocess.Popen[str]]


@pytest.fixture
async def nvml(node: SimulatedNode) -> AsyncIterator[Nvml]:  # noqa: ARG001 - only has to be there
    """Start an Nvml that looks at the simulated node."""
    nvml = Nvml(call_timeout=PATIENT)
    assert await nvml.start() is None
    yield nvml
    await nvml.close()


async def look(nvml: Nvml, *uuids: str) -> tuple[GpuUse, ...]:
    """Take a snapshot that must not be blind."""
    snapshot = await nvml.snapshot(uuids or (GPU,))
    assert isinstance(snapshot, Snapshot), snapshot
    return snapshot.gpus


async def blindness(nvml: Nvml) -> BlindReason | None:
    """Take a snapshot and give the reason why it is blind, if it is."""
    snapshot = await nvml.snapshot([GPU])
    return snapshot.reason if isinstance(snapshot, Blind) else None


async def test_devices_are_the_gpus_of_the_node(nvml: Nvml) -> None:
    """Each GPU comes with its uuid, index, name and size."""
    devices = await nvml.devices()

    assert devices == (
        Device(GPU, 0, "NVIDIA Simulated GPU", 80 * GIB),
        Device(OTHER_GPU, 1, "NVIDIA Simulated GPU", 80 * GIB),
    )


async def test_idle_gpu_has_no_holders(nvml: Nvml) -> None:
    """An idle GPU is a real answer: nobody holds, and every list was read."""
    assert await look(nvml) == (GpuUse(GPU, BASE, (), frozenset()),)


async def test_process_holds_until_it_is_dead(nvml: Nvml, start_holder: StartHolder) -> None:
    """A real process is seen with its bytes, and gone after a real SIGKILL."""
    process = start_holder(2 * GIB)
    holder = Holder(process.pid, 2 * GIB, GPU, frozenset({Use.COMPUTE}))
    assert await look(nvml) == (GpuUse(GPU, BASE + 2 * GIB, (holder,), frozenset()),)

    process.kill()
    process.wait()

    assert await look(nvml) == (GpuUse(GPU, BASE, (), frozenset()),)


@pytest.mark.parametrize("kind", list(Use))
async def test_every_kind_of_use_holds(nvml: Nvml, node: SimulatedNode, kind: Use) -> None:
    """Compute, graphics and MPS have a list each, and all three are read."""
    hold(node.state_dir, GPU, GIB, kind=kind.value)

    [gpu] = await look(nvml)

    assert gpu.holders == (Holder(os.getpid(), GIB, GPU, frozenset({kind})),)


async def test_process_in_two_lists_is_one_holder(nvml: Nvml, node: SimulatedNode) -> None:
    """Each list tells the whole of a process: the larger size counts, not the sum."""
    hold(node.state_dir, GPU, GIB, kind="compute")
    hold(node.state_dir, GPU, 2 * GIB, kind="graphics")

    [gpu] = await look(nvml)

    assert gpu.holders == (
        Holder(os.getpid(), 2 * GIB, GPU, frozenset({Use.COMPUTE, Use.GRAPHICS})),
    )


async def test_unmeasured_memory_is_held_without_a_size(nvml: Nvml, node: SimulatedNode) -> None:
    """A size that NVML cannot tell is None, never 0, even where another list has one."""
    hold(node.state_dir, GPU, None, kind="compute")
    hold(node.state_dir, GPU, GIB, kind="mps")

    [gpu] = await look(nvml)

    assert gpu.holders == (Holder(os.getpid(), None, GPU, frozenset({Use.COMPUTE, Use.MPS})),)


async def test_every_gpu_is_read_when_none_is_named(nvml: Nvml, node: SimulatedNode) -> None:
    """None asks for the whole node."""
    hold(node.state_dir, OTHER_GPU, GIB)

    snapshot = await nvml.snapshot(None)

    assert isinstance(snapshot, Snapshot)
    assert [gpu.uuid for gpu in snapshot.gpus] == [GPU, OTHER_GPU]
    assert [holder.gpu_uuid for holder in snapshot.holders] == [OTHER_GPU]


@pytest.mark.parametrize("uuids", [(), ("GPU-unplugged",), (GPU, "GPU-unplugged")])
async def test_gpu_that_is_not_there_blinds(nvml: Nvml, uuids: tuple[str, ...]) -> None:
    """A GPU without a name, or unknown to the driver, has not been looked at."""
    answer = await nvml.snapshot(uuids)

    assert isinstance(answer, Blind)
    assert answer.reason is BlindReason.GPU_NOT_FOUND


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_UNINITIALIZED, BlindReason.UNINITIALIZED),
        (pynvml.NVML_ERROR_NO_PERMISSION, BlindReason.NO_PERMISSION),
        (pynvml.NVML_ERROR_INSUFFICIENT_SIZE, BlindReason.LISTS_UNSTABLE),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, BlindReason.DRIVER_NOT_LOADED),
        (pynvml.NVML_ERROR_TIMEOUT, BlindReason.NVML_TIMEOUT),
        (pynvml.NVML_ERROR_GPU_IS_LOST, BlindReason.GPU_IS_LOST),
        (pynvml.NVML_ERROR_RESET_REQUIRED, BlindReason.RESET_REQUIRED),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, BlindReason.DRIVER_MISMATCH),
        (pynvml.NVML_ERROR_UNKNOWN, BlindReason.NVML_ERROR),
        (4242, BlindReason.NVML_ERROR),
    ],
)
@pytest.mark.parametrize("symbol", [COMPUTE_LIST, GRAPHICS_LIST, MPS_LIST])
async def test_failing_list_blinds(
    nvml: Nvml, node: SimulatedNode, *, symbol: str, code: int, reason: BlindReason
) -> None:
    """A list that fails is no empty list, and the answer names the GPU and the reason."""
    node.inject(symbol, rc=code)

    answer = await nvml.snapshot([GPU])

    assert isinstance(answer, Blind)
    assert (answer.reason, GPU in answer.detail) == (reason, True)


@pytest.mark.parametrize(
    "symbol", ["nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMigMode", "nvmlDeviceGetMemoryInfo"]
)
async def test_any_other_failing_call_blinds(nvml: Nvml, node: SimulatedNode, symbol: str) -> None:
    """No step of a snapshot may fail unnoticed."""
    node.inject(symbol, rc=pynvml.NVML_ERROR_GPU_IS_LOST)

    assert await blindness(nvml) is BlindReason.GPU_IS_LOST


@pytest.mark.parametrize(
    "code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND]
)
async def test_only_the_compute_list_must_be_kept(
    nvml: Nvml, node: SimulatedNode, code: int
) -> None:
    """Missing graphics and MPS lists are noted; without the compute list nothing is proven."""
    hold(node.state_dir, GPU, GIB)
    node.inject(GRAPHICS_LIST, rc=code)
    node.inject(MPS_LIST, rc=code)
    [gpu] = await look(nvml)
    assert (len(gpu.holders), gpu.skipped) == (1, frozenset({Use.GRAPHICS, Use.MPS}))

    node.inject(COMPUTE_LIST, rc=code)

    assert await blindness(nvml) is BlindReason.NOT_SUPPORTED


async def test_gpu_without_mig_is_read_whole(nvml: Nvml, node: SimulatedNode) -> None:
    """Most GPUs cannot be cut at all and say so."""
    hold(node.state_dir, GPU, GIB)
    node.inject("nvmlDeviceGetMigMode", rc=pynvml.NVML_ERROR_NOT_SUPPORTED)

    [gpu] = await look(nvml)

    assert len(gpu.holders) == 1


async def test_lost_gpu_blinds_only_those_who_ask_for_it(nvml: Nvml, node: SimulatedNode) -> None:
    """A healthy neighbour can still be verified; an answer about the whole node cannot be."""
    node.inject("*", uuid=OTHER_GPU, rc=pynvml.NVML_ERROR_GPU_IS_LOST)

    assert await blindness(nvml) is None
    assert isinstance(await nvml.snapshot(None), Blind)
    assert isinstance(await nvml.devices(), Blind)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, BlindReason.DRIVER_NOT_LOADED),
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, BlindReason.LIBRARY_NOT_FOUND),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, BlindReason.DRIVER_MISMATCH),
    ],
)
async def test_start_without_a_driver_is_blind_until_there_is_one(
    node: SimulatedNode, code: int, reason: BlindReason
) -> None:
    """Each later question tries to initialise again, so no restart is needed."""
    node.inject("nvmlInitWithFlags", rc=code)
    nvml = Nvml(call_timeout=PATIENT)

    started = await nvml.start()
    assert isinstance(started, Blind)
    assert (started.reason, await blindness(nvml)) == (reason, reason)

    node.clear_faults()
    assert await blindness(nvml) is None
    await nvml.close()


@pytest.mark.usefixtures("node")
async def test_nvml_is_blind_before_start_and_after_close() -> None:
    """Nobody looks without a thread."""
    nvml = Nvml(call_timeout=PATIENT)
    assert await blindness(nvml) is BlindReason.NOT_STARTED

    await nvml.start()
    await nvml.close()

    assert await blindness(nvml) is BlindReason.NOT_STARTED


async def test_hanging_call_blinds_every_answer_until_it_returns(node: SimulatedNode) -> None:
    """The first waits its time, the rest need not; once the GPU answers again so does Nvml."""
    nvml = Nvml(call_timeout=IMPATIENT)
    await nvml.start()
    node.hang(COMPUTE_LIST)

    # Were each of them to wait its time, the test's own 20 s would be over first.
    reasons = {await blindness(nvml) for _ in range(1000)}
    assert reasons == {BlindReason.NVML_TIMEOUT}

    node.clear_faults()
    await seeing_again(nvml)
    await nvml.close()


async def test_abandoned_hanging_call_blinds_too(node: SimulatedNode) -> None:
    """A question whose asker was cancelled still keeps the thread."""
    nvml = Nvml(call_timeout=IMPATIENT)
    await nvml.start()
    node.hang(COMPUTE_LIST)
    asker = asyncio.create_task(nvml.snapshot([GPU]))
    await asyncio.sleep(0.01)

    asker.cancel()

    assert await blindness(nvml) is BlindReason.NVML_TIMEOUT
    node.clear_faults()
    await seeing_again(nvml)
    await nvml.close()


async def test_slow_call_in_time_is_an_answer(nvml: Nvml, node: SimulatedNode) -> None:
    """Only the limit makes slowness blind."""
    node.inject(COMPUTE_LIST, rc=pynvml.NVML_SUCCESS, delay_ms=30)

    assert await blindness(nvml) is None


async def test_close_does_not_wait_for_a_hanging_call(node: SimulatedNode) -> None:
    """The agent can stop beside a sick GPU."""
    nvml = Nvml(call_timeout=IMPATIENT)
    await nvml.start()
    node.hang(COMPUTE_LIST)
    await nvml.snapshot([GPU])

    async with asyncio.timeout(1):
        await nvml.close()


async def test_process_with_a_hanging_call_can_exit(
    node: SimulatedNode, simulated_nvml: Path
) -> None:
    """Nothing joins the thread at exit, so kubelet gets its new container."""
    node.hang(COMPUTE_LIST)
    program = textwrap.dedent(f"""
        import asyncio
        from datetime import timedelta
        from gpusession.agent.nvml import Nvml

        async def main():
            nvml = Nvml(call_timeout=timedelta(milliseconds=50))
            await nvml.start()
            print((await nvml.snapshot([{GPU!r}])).reason)

        asyncio.run(main())
    """)

    sources = str(Path(gpusession.__file__).parents[1])
    environment = {**os.environ, **node.environment(simulated_nvml), "PYTHONPATH": sources}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(10):
        printed, _ = await process.communicate()

    assert (printed.decode().strip(), process.returncode) == ("nvml_timeout", 0)


async def test_driver_that_hides_processes_shows_an_empty_gpu(
    nvml: Nvml, node: SimulatedNode
) -> None:
    """No call fails, so only a check of the pid namespace can save an agent from this lie."""
    hold(node.state_dir, GPU, GIB)
    node.hide_processes()

    [gpu] = await look(nvml)

    assert (gpu.holders, gpu.used_bytes) == ((), BASE + GIB)


async def seeing_again(nvml: Nvml) -> None:
    """Ask until an answer is not blind: the call that hung needs a moment to return."""
    async with asyncio.timeout(5):
        while await blindness(nvml) is not None:
            await asyncio.sleep(0.005)
