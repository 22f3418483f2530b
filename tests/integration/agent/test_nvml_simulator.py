"""The simulator is as strict as the real library, and only a real death frees its memory."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pynvml
import pytest
from tests.support import nvml_simulator
from tests.support.nvml_simulator import (
    SOURCES,
    SimulatedNode,
    build_nvml_simulator,
    hold,
    release_hold,
    start_time,
    write_row,
)

GPU = "GPU-5a2c0000-0000-4000-8000-000000000000"
BASE = 512 * 2**20
GIB = 2**30
CONTAINED = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

StartHolder = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def gpu(node: SimulatedNode) -> Iterator[Any]:  # noqa: ARG001 - only has to be there
    """Give pynvml's handle of the first GPU."""
    pynvml.nvmlInit()
    yield pynvml.nvmlDeviceGetHandleByUUID(GPU)
    pynvml.nvmlShutdown()


def compute(gpu: Any) -> dict[int, int | None]:
    """Ask the real pynvml for compute processes and their bytes."""
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(gpu)
    return {process.pid: process.usedGpuMemory for process in processes}


def used(gpu: Any) -> int:
    """Ask the real pynvml for the bytes in use."""
    return int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used)


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (pynvml.c_nvmlProcessInfo_v3_t, 24),
        (pynvml.c_nvmlMemory_t, 24),
        (pynvml.c_nvmlMemory_v2_t, 40),
        (pynvml.nvmlPciInfo_t, 68),
        (pynvml.c_nvmlEventData_t, 32),
        (pynvml.c_nvmlUtilization_t, 8),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_structures_have_the_size_that_the_driver_fills(structure: type, size: int) -> None:
    """A pynvml with other layouts would misread the real driver and this simulator alike."""
    assert ctypes.sizeof(structure) == size


def test_process_entries_have_their_fields_where_the_driver_puts_them() -> None:
    """Pid, bytes and the two instance numbers lie at 0, 8, 16 and 20."""
    entry = pynvml.c_nvmlProcessInfo_v3_t

    fields = (entry.pid, entry.usedGpuMemory, entry.gpuInstanceId, entry.computeInstanceId)

    assert [field.offset for field in fields] == [0, 8, 16, 20]


def test_second_memory_structure_carries_its_version(gpu: Any) -> None:
    """Version 2 announces 40 bytes, and a caller with any other number is refused."""
    assert pynvml.nvmlMemory_v2 == 0x02000028
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2).used == BASE
    with pytest.raises(pynvml.NVMLError) as refused:
        pynvml.nvmlDeviceGetMemoryInfo(gpu, version=0x01000028)
    assert refused.value.value == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def test_size_probe_asks_for_room_when_there_are_processes(
    gpu: Any, simulated_nvml: Path, start_holder: StartHolder
) -> None:
    """Count 0 without a buffer gets INSUFFICIENT_SIZE and the count, or pynvml sees nobody."""
    start_holder(GIB)
    start_holder(GIB)
    library = ctypes.CDLL(str(simulated_nvml / "libnvidia-ml.so.1"))
    count = ctypes.c_uint(0)

    rc = library.nvmlDeviceGetComputeRunningProcesses_v3(gpu, ctypes.byref(count), None)

    assert (rc, count.value) == (pynvml.NVML_ERROR_INSUFFICIENT_SIZE, 2)


def test_size_probe_succeeds_only_without_processes(gpu: Any, simulated_nvml: Path) -> None:
    """SUCCESS with count 0 is the answer of an idle GPU."""
    library = ctypes.CDLL(str(simulated_nvml / "libnvidia-ml.so.1"))
    count = ctypes.c_uint(0)

    rc = library.nvmlDeviceGetComputeRunningProcesses_v3(gpu, ctypes.byref(count), None)

    assert (rc, count.value) == (pynvml.NVML_SUCCESS, 0)


def test_fresh_interpreter_finds_the_library_by_path(
    node: SimulatedNode, simulated_nvml: Path, start_holder: StartHolder
) -> None:
    """With `environment` alone an unchanged program sees the node and its processes."""
    holder = start_holder(2 * GIB)
    program = textwrap.dedent("""
        import json, pynvml
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        print(json.dumps([pynvml.nvmlDeviceGetCount(), pynvml.nvmlDeviceGetUUID(gpu),
                          [[process.pid, process.usedGpuMemory] for process in processes]]))
    """)

    environment = {**os.environ, **node.environment(simulated_nvml)}
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout

    assert json.loads(printed) == [2, GPU, [[holder.pid, 2 * GIB]]]


def test_stopped_process_still_holds_and_a_killed_one_does_not(
    gpu: Any, start_holder: StartHolder
) -> None:
    """SIGSTOP frees nothing; after SIGKILL the process is gone and its bytes are back."""
    holder = start_holder(3 * GIB)

    holder.send_signal(signal.SIGSTOP)
    assert (compute(gpu), used(gpu)) == ({holder.pid: 3 * GIB}, BASE + 3 * GIB)

    holder.kill()
    holder.wait()
    assert (compute(gpu), used(gpu)) == ({}, BASE)


def test_zombie_holds_nothing(gpu: Any, start_holder: StartHolder) -> None:
    """A dead process has closed its files, though its parent has not asked for its end."""
    holder = start_holder(GIB)

    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)

    assert Path(f"/proc/{holder.pid}").exists()
    assert (compute(gpu), used(gpu)) == ({}, BASE)


def test_threads_behind_a_dead_leader_hold_on(gpu: Any, node: SimulatedNode) -> None:
    """A leader that ended is a zombie too, but its threads keep the files of the process."""
    program = textwrap.dedent(f"""
        import ctypes, threading, time
        from pathlib import Path
        from nvml_simulator import hold
        hold(Path({str(node.state_dir)!r}), {GPU!r}, {GIB})
        threading.Thread(target=time.sleep, args=(60,)).start()
        ctypes.CDLL(None).pthread_exit(None)
    """)

    environment = {**os.environ, "PYTHONPATH": str(SOURCES.parent)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as process:
        try:
            wait_until(lambda: is_zombie(process.pid))
            held = compute(gpu)
        finally:
            process.kill()

    assert held == {process.pid: GIB}
    assert compute(gpu) == {}


def test_reused_pid_holds_nothing(gpu: Any, node: SimulatedNode) -> None:
    """A living process with the pid of a dead one has another start time."""
    born = start_time(os.getpid())
    write_row(node.state_dir, GPU, GIB, kind="compute", pid=os.getpid(), born=born - 1)

    assert (compute(gpu), used(gpu)) == ({}, BASE)


def test_process_of_another_namespace_is_unseen_but_its_memory_is_in_use(
    gpu: Any, node: SimulatedNode
) -> None:
    """The real driver leaves such a pid out with success: an empty list proves nothing there."""
    row = hold(node.state_dir, GPU, GIB)
    own_namespace = Path("/proc/self/ns/pid").stat().st_ino

    row.write_text(row.read_text().replace(str(own_namespace), "4026539999"))

    assert (compute(gpu), used(gpu)) == ({}, BASE + GIB)


@pytest.fixture
def start_contained_holder(node: SimulatedNode) -> Iterator[Callable[[], int]]:
    """Give a way to start a holder in a child pid namespace; it gives our pid of it."""
    if os.geteuid() != 0:
        pytest.skip("only root makes pid namespaces")
    with ExitStack() as stack:

        def start() -> int:
            program = [sys.executable, "-I", "-S", nvml_simulator.__file__]
            asked = [str(node.state_dir), GPU, str(GIB)]
            command = [*CONTAINED, *program, *asked]
            outer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.enter_context(outer)
            stack.callback(outer.kill)
            assert outer.stdout is not None
            assert outer.stdout.readline() == "holding\n"
            return int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())

        yield start


def test_process_of_a_child_namespace_is_listed_with_our_pid(
    gpu: Any, start_contained_holder: Callable[[], int]
) -> None:
    """The driver translates: two processes that are each number 1 in there are two in here."""
    first, second = start_contained_holder(), start_contained_holder()

    assert compute(gpu) == {first: GIB, second: GIB}
    assert used(gpu) == BASE + 2 * GIB


def test_dead_process_of_a_child_namespace_holds_nothing(
    gpu: Any, start_contained_holder: Callable[[], int]
) -> None:
    """Its death frees its memory for observers outside as well, and only its own."""
    first, second = start_contained_holder(), start_contained_holder()

    os.kill(first, signal.SIGKILL)
    wait_until(lambda: compute(gpu) == {second: GIB})

    assert used(gpu) == BASE + GIB


def test_neighbour_namespace_sees_the_memory_but_not_the_process(
    node: SimulatedNode, simulated_nvml: Path, start_contained_holder: Callable[[], int]
) -> None:
    """From inside another container the list is empty, with success, and the GPU is not."""
    start_contained_holder()
    program = textwrap.dedent("""
        import pynvml
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        print(len(processes), pynvml.nvmlDeviceGetMemoryInfo(gpu).used)
    """)

    environment = {**os.environ, **node.environment(simulated_nvml)}
    command = [*CONTAINED, sys.executable, "-c", program]
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout

    assert printed.decode().split() == ["0", str(BASE + GIB)]


def test_memory_outlives_its_process_by_the_lag(
    gpu: Any, node: SimulatedNode, start_holder: StartHolder
) -> None:
    """The lag runs from the first look at the dead process, which still finds it holding."""
    node.set_lag(150)
    holder = start_holder(GIB)
    holder.kill()
    holder.wait()

    seen_dead_at = time.monotonic()
    assert compute(gpu) == {holder.pid: GIB}
    wait_until(lambda: compute(gpu) == {})

    assert time.monotonic() - seen_dead_at >= 0.14  # file times tick every 4 ms
    assert used(gpu) == BASE


def test_allocations_of_a_process_are_one_entry(gpu: Any, node: SimulatedNode) -> None:
    """The driver lists a process once with all its bytes, until it gives them back."""
    first = hold(node.state_dir, GPU, GIB)
    hold(node.state_dir, GPU, 2 * GIB)
    assert compute(gpu) == {os.getpid(): 3 * GIB}

    release_hold(first)

    assert compute(gpu) == {os.getpid(): 2 * GIB}


def test_unmeasured_memory_has_no_size(gpu: Any, node: SimulatedNode) -> None:
    """All ones in the size field is how the driver says that it cannot tell."""
    hold(node.state_dir, GPU, None)

    assert compute(gpu) == {os.getpid(): None}


def test_garbled_row_fails_the_call(gpu: Any, node: SimulatedNode) -> None:
    """A state that cannot be read is an error, never an empty list."""
    (node.state_dir / "allocations" / "1-1-garbled").write_text("no row\n")

    with pytest.raises(pynvml.NVMLError) as failed:
        compute(gpu)

    assert failed.value.value == pynvml.NVML_ERROR_UNKNOWN


@pytest.mark.usefixtures("node")
def test_node_without_devices_file_has_no_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Initialisation fails as it does where the driver is not loaded."""
    monkeypatch.setenv("NVML_SIMULATOR_STATE", str(tmp_path / "nowhere"))

    with pytest.raises(pynvml.NVMLError) as failed:
        pynvml.nvmlInit()

    assert failed.value.value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED


def test_library_is_built_once(simulated_nvml: Path) -> None:
    """The same sources give the same file, without the compiler running again."""
    library = build_nvml_simulator(simulated_nvml, cc=["false"])

    assert library == simulated_nvml / "libnvidia-ml.so.1"


def is_zombie(pid: int) -> bool:
    """Tell whether the leader of the process has ended and waits for its parent."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_until(claim: Callable[[], bool]) -> None:
    """Look every 5 ms until the claim holds, for 5 s at most."""
    give_up_at = time.monotonic() + 5
    while not claim():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)
