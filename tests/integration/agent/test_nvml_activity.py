"""How much GPUs and processes work, as the real pynvml reads it from the simulator."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pynvml
import pytest
from tests.support.nvml_simulator import SimulatedNode, hold, work

from gpusession.agent.nvml import Blind, BlindReason, GpuActivity, Nvml

GPU = "GPU-5a2c0000-0000-4000-8000-000000000000"
OTHER_GPU = "GPU-5a2c0000-0000-4000-8000-000000000001"
GIB = 2**30

SAMPLES = "nvmlDeviceGetProcessUtilization"
RATES = "nvmlDeviceGetUtilizationRates"

StartHolder = Callable[..., subprocess.Popen[str]]


@pytest.fixture
async def nvml(node: SimulatedNode) -> AsyncIterator[Nvml]:  # noqa: ARG001 - only has to be there
    """Start an Nvml that looks at the simulated node."""
    nvml = Nvml(call_timeout=timedelta(seconds=5))
    assert await nvml.start() is None
    yield nvml
    await nvml.close()


def moment() -> datetime:
    """Tell the time, which the samples carry."""
    return datetime.fromtimestamp(time.time(), tz=UTC)


async def first(nvml: Nvml, since: datetime) -> GpuActivity:
    """Give the activity of the first GPU, which must not be blind."""
    activity = await nvml.activity(since)
    assert isinstance(activity, tuple), activity
    return activity[0]


async def test_every_gpu_tells_how_it_and_its_processes_work(
    nvml: Nvml, node: SimulatedNode
) -> None:
    """The process that works is named with its most; the idle GPU has a real zero."""
    since = moment()
    work(hold(node.state_dir, GPU, GIB), 60)

    activity = await nvml.activity(since)

    busy = GpuActivity(GPU, 60, {os.getpid(): 60})
    assert activity == (busy, GpuActivity(OTHER_GPU, 0, {}))


async def test_work_that_ended_before_the_look_is_still_seen(
    nvml: Nvml, node: SimulatedNode
) -> None:
    """The driver's buffer tells of a burst; the figure of the whole GPU is of this moment."""
    since, row = moment(), hold(node.state_dir, GPU, GIB)
    work(row, 60)
    work(row, 0)

    gpu = await first(nvml, since)

    assert (gpu.device_percent, gpu.processes) == (0, {os.getpid(): 60})


async def test_work_before_the_asked_moment_is_left_out(nvml: Nvml, node: SimulatedNode) -> None:
    """Each look is told what is new to it."""
    row = hold(node.state_dir, GPU, GIB)
    work(row, 60)
    work(row, 0)

    assert (await first(nvml, moment())).processes == {}


async def test_samples_that_are_too_old_count_for_nothing(nvml: Nvml, node: SimulatedNode) -> None:
    """Drivers are known to give more than was asked for: an end long ago is no work now."""
    row = hold(node.state_dir, GPU, GIB)
    work(row, 60)
    work(row, 0)
    node.answer_stale(SAMPLES)

    assert (await first(nvml, moment())).processes == {}


async def test_decoding_is_work_too(nvml: Nvml, node: SimulatedNode) -> None:
    """A process that only decodes video uses no SM."""
    since = moment()
    work(hold(node.state_dir, GPU, GIB), 30, engine="decoder")

    assert await first(nvml, since) == GpuActivity(GPU, 0, {os.getpid(): 30})


async def test_a_dead_process_is_told_of(nvml: Nvml, start_holder: StartHolder) -> None:
    """Its samples outlive it: the pid alone says nothing about who has it now."""
    since, holder = moment(), start_holder(GIB)
    state_dir = Path(os.environ["NVML_SIMULATOR_STATE"])
    [row] = (state_dir / "allocations").iterdir()
    work(row, 60)

    holder.send_signal(signal.SIGKILL)
    holder.wait()

    assert (await first(nvml, since)).processes == {holder.pid: 60}


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
    ],
)
async def test_what_the_driver_does_not_keep_is_none(
    nvml: Nvml, node: SimulatedNode, code: int
) -> None:
    """None is no zero, and one figure does not need the other."""
    since = moment()
    work(hold(node.state_dir, GPU, GIB), 60)

    node.inject(SAMPLES, rc=code)
    assert await first(nvml, since) == GpuActivity(GPU, 60, None)

    node.inject(RATES, rc=code)
    assert await first(nvml, since) == GpuActivity(GPU, None, None)


async def test_not_found_is_the_word_for_idle(nvml: Nvml, node: SimulatedNode) -> None:
    """The driver has samples, and none of anybody."""
    node.inject(SAMPLES, rc=pynvml.NVML_ERROR_NOT_FOUND)

    assert (await first(nvml, moment())).processes == {}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_NO_PERMISSION, BlindReason.NO_PERMISSION),
        (pynvml.NVML_ERROR_INSUFFICIENT_SIZE, BlindReason.LISTS_UNSTABLE),
        (pynvml.NVML_ERROR_TIMEOUT, BlindReason.NVML_TIMEOUT),
        (pynvml.NVML_ERROR_GPU_IS_LOST, BlindReason.GPU_IS_LOST),
        (pynvml.NVML_ERROR_UNKNOWN, BlindReason.NVML_ERROR),
    ],
)
@pytest.mark.parametrize("symbol", [SAMPLES, RATES])
async def test_any_other_failure_blinds(
    nvml: Nvml, node: SimulatedNode, *, symbol: str, code: int, reason: BlindReason
) -> None:
    """Who could not look says so, and names the GPU."""
    work(hold(node.state_dir, GPU, GIB), 60)
    node.inject(symbol, rc=code)

    activity = await nvml.activity(moment() - timedelta(seconds=1))

    assert isinstance(activity, Blind)
    assert (activity.reason, GPU in activity.detail) == (reason, True)


async def test_samples_beyond_the_whole_make_all_of_them_unbelievable(
    nvml: Nvml, node: SimulatedNode
) -> None:
    """Drivers are known to give garbage; zeros beside it are worth no more."""
    work(hold(node.state_dir, GPU, GIB), 4_000_000)

    assert (await first(nvml, moment() - timedelta(seconds=1))).processes is None


@pytest.mark.parametrize("symbol", [SAMPLES, RATES])
async def test_a_hanging_figure_blinds_in_time(node: SimulatedNode, symbol: str) -> None:
    """A sick GPU costs the limit of a call, then every look is blind at once."""
    nvml = Nvml(call_timeout=timedelta(milliseconds=50))
    await nvml.start()
    node.hang(symbol)

    answers = [await nvml.activity(moment()) for _ in range(3)]

    assert {getattr(answer, "reason", None) for answer in answers} == {BlindReason.NVML_TIMEOUT}
    node.clear_faults()
    await nvml.close()


def test_the_simulator_sizes_samples_as_the_driver_does(
    node: SimulatedNode, simulated_nvml: Path
) -> None:
    """NOT_FOUND for an idle GPU; else INSUFFICIENT_SIZE with the count that is needed."""
    library, count = ctypes.CDLL(str(simulated_nvml / "libnvidia-ml.so.1")), ctypes.c_uint(0)
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByUUID(GPU)

    def probe() -> int:
        return int(getattr(library, SAMPLES)(gpu, None, ctypes.byref(count), ctypes.c_ulonglong(0)))

    assert (probe(), count.value) == (pynvml.NVML_ERROR_NOT_FOUND, 0)
    work(hold(node.state_dir, GPU, GIB), 60)
    assert (probe(), count.value) == (pynvml.NVML_ERROR_INSUFFICIENT_SIZE, 1)
    pynvml.nvmlShutdown()


def test_sample_entries_have_their_fields_where_the_driver_puts_them() -> None:
    """Pid, time and the four engines lie at 0, 8 and from 16 on."""
    entry = pynvml.c_nvmlProcessUtilizationSample_t
    fields = (entry.pid, entry.timeStamp, entry.smUtil, entry.memUtil, entry.encUtil, entry.decUtil)

    assert ctypes.sizeof(entry) == 32
    assert [field.offset for field in fields] == [0, 8, 16, 20, 24, 28]
