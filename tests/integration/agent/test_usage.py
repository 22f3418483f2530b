"""Whose work it is, and when nobody may say that there is none."""

import asyncio
import os
import signal
import time

import pynvml
import pytest
from tests.support.agent_rig import USAGE_LIMITS, AgentRig, RunningPod

from gpusession.api.usage import Busy, SessionUsage

SAMPLES = "nvmlDeviceGetProcessUtilization"
RATES = "nvmlDeviceGetUtilizationRates"


async def _bound(rig: AgentRig, name: str = "pod", *args: str) -> RunningPod:
    pod = await rig.start_pod(name, *args)
    report = await rig.binder.bind(rig.bind_request(pod, f"session-{name}"))
    assert report.bound, report
    return pod


async def _usage(rig: AgentRig, name: str = "pod") -> SessionUsage:
    report = await rig.usage.report()
    return {usage.session_uid: usage for usage in report.sessions}[f"session-{name}"]


async def _look_for_a_window(rig: AgentRig, *, pause: float = 0.05) -> None:
    """Look until a look has begun a whole window after the first one ended."""
    await rig.observer.observe()
    begun, end = 0.0, time.monotonic() + USAGE_LIMITS.window.total_seconds()
    while begun < end:
        await asyncio.sleep(pause)
        begun = time.monotonic()
        await rig.observer.observe()


async def _look_until_told(rig: AgentRig, *names: str, pause: float = 0.05) -> list[SessionUsage]:
    """Look for windows until nobody is Unknown: a slow machine makes blind looks of its own."""
    async with asyncio.timeout(15):
        while True:
            await _look_for_a_window(rig, pause=pause)
            usages = [await _usage(rig, name) for name in names or ("pod",)]
            if Busy.UNKNOWN not in {usage.busy for usage in usages}:
                return usages


def _give_pid_away(rig: AgentRig, pid: int, heir: RunningPod) -> None:
    """Show the agent another process behind the pid: later started, and of another Pod."""
    entry = rig.root / "proc" / str(pid)
    head, bracket, tail = (entry / "stat").read_text().rpartition(")")
    fields = tail.split(" ")
    fields[20] = str(int(fields[20]) + 1)  # field 22 of the whole line
    (entry / "stat").unlink()
    (entry / "stat").write_text(f"{head}{bracket}{' '.join(fields)}")
    (entry / "cgroup").write_text(f"0::/{heir.cgroup}/{heir.container_id}\n")


def _kill_all(rig: AgentRig, pod: RunningPod) -> None:
    for pid in rig.pids(pod):
        os.kill(pid, signal.SIGKILL)


async def test_a_busy_workload_is_seen_busy_at_once(rig: AgentRig) -> None:
    """The second look shows it: the first one only says since when."""
    await _bound(rig, "pod", "--busy", "60")
    await rig.observer.observe()
    first = await _usage(rig)

    await rig.observer.observe()
    second = await _usage(rig)

    assert (first.busy, first.utilization_percent) == (Busy.UNKNOWN, None)
    assert (second.busy, second.utilization_percent) == (Busy.BUSY, 60)


async def test_a_silent_workload_is_not_busy_after_a_whole_window(rig: AgentRig) -> None:
    """Until then its silence proves nothing, as after every start of the agent."""
    await _bound(rig)
    await rig.observer.observe()
    await rig.observer.observe()
    early = await _usage(rig)

    [late] = await _look_until_told(rig)

    assert (early.busy, late.busy, late.utilization_percent) == (Busy.UNKNOWN, Busy.NOT_BUSY, 0)
    assert late.sampled_seconds == pytest.approx(0.5, abs=0.01)


async def test_work_between_two_looks_is_not_missed(rig: AgentRig) -> None:
    """The driver's samples tell of what nobody watched."""
    pod = await _bound(rig)
    await _look_until_told(rig)
    rig.work(pod, 40)
    rig.work(pod, 0)

    await rig.observer.observe()

    assert (await _usage(rig)).busy is Busy.BUSY


async def test_two_callers_get_the_same_answer(rig: AgentRig) -> None:
    """An answer takes nothing away from the next."""
    await _bound(rig, "pod", "--busy", "60")
    await rig.observer.observe()
    await rig.observer.observe()

    one, two = await rig.usage.report(), await rig.usage.report()

    assert (one, one.boot_id) == (two, "boot-1")


async def test_a_neighbours_work_is_not_the_sessions(rig: AgentRig) -> None:
    """On a GPU that Pods share each is told by its own processes."""
    await _bound(rig, "busy", "--busy", "60")
    await _bound(rig, "silent")

    usages = await _look_until_told(rig, "busy", "silent")

    assert [usage.busy for usage in usages] == [Busy.BUSY, Busy.NOT_BUSY]


@pytest.mark.parametrize(
    ("symbol", "code"),
    [
        (SAMPLES, pynvml.NVML_ERROR_UNKNOWN),
        (RATES, pynvml.NVML_ERROR_GPU_IS_LOST),
        ("nvmlDeviceGetComputeRunningProcesses_v3", pynvml.NVML_ERROR_UNKNOWN),
        ("*", pynvml.NVML_ERROR_NOT_SUPPORTED),
    ],
)
async def test_a_blind_observer_says_unknown(rig: AgentRig, symbol: str, code: int) -> None:
    """One blind look in the window is enough to know nothing."""
    await _bound(rig)
    await _look_until_told(rig)
    rig.node.inject(symbol, rc=code)
    await rig.observer.observe()
    blind = await _usage(rig)
    rig.node.clear_faults()

    await rig.observer.observe()

    assert (blind.busy, (await _usage(rig)).busy) == (Busy.UNKNOWN, Busy.UNKNOWN)


async def test_an_unproven_pid_namespace_says_unknown(rig: AgentRig) -> None:
    """Its driver would leave out pids with success: nobody's silence is believed."""
    await _bound(rig)
    await _look_until_told(rig)
    rig.socket.unlink()

    await rig.observer.observe()

    assert (await _usage(rig)).busy is Busy.UNKNOWN


async def test_a_wall_clock_that_steps_back_says_unknown(rig: AgentRig) -> None:
    """The driver's samples would all be older than what is asked for, and so look like none."""
    await _bound(rig)
    await _look_until_told(rig)
    rig.stepped = -3600.0

    await rig.observer.observe()
    await rig.observer.observe()

    assert (await _usage(rig)).busy is Busy.UNKNOWN


async def test_a_pid_that_is_used_again_is_not_the_sessions(rig: AgentRig) -> None:
    """Samples carry a pid and no start time: between two looks they may be of either process."""
    one, two = await _bound(rig, "one"), await _bound(rig, "two")
    await rig.observer.observe()
    [pid] = rig.pids(one)
    _give_pid_away(rig, pid, two)
    rig.work(one, 60)  # the simulator knows the row by its name; the agent sees the pid alone

    await rig.observer.observe()
    either = (await _usage(rig, "one")).busy, (await _usage(rig, "two")).busy
    later = [usage.busy for usage in await _look_until_told(rig, "one", "two")]

    assert either == (Busy.UNKNOWN, Busy.UNKNOWN)
    assert later == [Busy.NOT_BUSY, Busy.BUSY]


async def test_the_work_of_a_process_that_is_gone_is_its_pods(rig: AgentRig) -> None:
    """It worked since the last look, which has listed it."""
    pod = await _bound(rig, "pod", "--fork-child")
    await rig.observer.observe()
    rig.work(pod, 60)
    _kill_all(rig, pod)
    await pod.shim.wait()

    await rig.observer.observe()

    assert (await _usage(rig)).busy is Busy.BUSY


async def test_without_samples_of_processes_the_whole_gpu_tells_of_who_is_alone(
    rig: AgentRig,
) -> None:
    """Older GPUs keep none: a Session with a GPU of its own is told by that."""
    await _bound(rig, "pod", "--busy", "60")
    rig.node.inject(SAMPLES, rc=pynvml.NVML_ERROR_NOT_SUPPORTED)

    await rig.observer.observe()
    await rig.observer.observe()

    assert (await _usage(rig)).utilization_percent == 60


async def test_without_samples_a_busy_gpu_names_nobody_of_two(rig: AgentRig) -> None:
    """Neither of them is called busy, and neither silent."""
    await _bound(rig, "busy", "--busy", "60")
    await _bound(rig, "silent")
    rig.node.inject(SAMPLES, rc=pynvml.NVML_ERROR_NOT_SUPPORTED)

    await _look_for_a_window(rig)

    usages = [await _usage(rig, "busy"), await _usage(rig, "silent")]
    assert [usage.busy for usage in usages] == [Busy.UNKNOWN, Busy.UNKNOWN]


async def test_without_samples_a_silent_gpu_clears_all_but_says_how_little_it_saw(
    rig: AgentRig,
) -> None:
    """The figure of a whole GPU is of a moment: the seconds between two looks do not count."""
    await _bound(rig, "one")
    await _bound(rig, "two")
    rig.node.inject(SAMPLES, rc=pynvml.NVML_ERROR_NOT_SUPPORTED)

    usages = await _look_until_told(rig, "one", "two", pause=0.25)

    assert [usage.busy for usage in usages] == [Busy.NOT_BUSY, Busy.NOT_BUSY]
    assert max(usage.sampled_seconds for usage in usages) < 0.5


async def test_silent_samples_below_an_mps_server_prove_nothing(rig: AgentRig) -> None:
    """The server works in the name of its clients."""
    await _bound(rig, "client", "--kind", "mps")
    await rig.start_pod("server", "--busy", "60")

    await _look_for_a_window(rig)

    assert (await _usage(rig, "client")).busy is Busy.UNKNOWN


async def test_the_successor_of_a_pod_inherits_no_silence(rig: AgentRig) -> None:
    """What was seen of a Session's last Pod says nothing about its next one."""
    pod = await _bound(rig)
    await _look_until_told(rig)
    await rig.releaser.release(rig.order(pod, "session-pod"))

    await _bound(rig)

    assert (await _usage(rig)).busy is Busy.UNKNOWN


async def test_only_bound_sessions_are_answered(rig: AgentRig) -> None:
    """Whose release has begun is nobody's to judge any more."""
    pod = await _bound(rig)
    await rig.releaser.release(rig.order(pod, "session-pod"))

    assert (await rig.usage.report()).sessions == ()


async def test_a_hanging_driver_delays_no_answer(rig: AgentRig) -> None:
    """Answers come from memory; the look itself ends with the limit of a call."""
    await _bound(rig)
    rig.node.hang(SAMPLES)
    await rig.observer.observe()
    async with asyncio.timeout(5):
        await rig.observer.observe()

    async with asyncio.timeout(0.4):
        usage = await _usage(rig)

    assert usage.busy is Busy.UNKNOWN
