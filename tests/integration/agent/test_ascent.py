"""One climb, stage by stage, on real processes."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

from tests.support.agent_rig import GIB, AgentRig, RunningPod

from gpusession.agent.ascent import Ascent
from gpusession.agent.gpu_view import GpuView
from gpusession.rules.ladder import Evidence, Limits, Rung, StageName

LIMITS = Limits()
COMPUTE_LIST = "nvmlDeviceGetComputeRunningProcesses_v3"
LOOK = Rung(StageName.RESOLVE, LIMITS.resolve)


def _ascent(rig: AgentRig, pod: RunningPod) -> Ascent:
    view = GpuView(rig.nvml, rig.processes)
    return Ascent(pod.uid, gpu_uuids=(), baseline=(), view=view, processes=rig.processes)


async def test_the_first_look_takes_the_bytes_before_and_ends_nobody(rig: AgentRig) -> None:
    """Looking is free of consequences."""
    pod = await rig.start_pod()
    ascent = _ascent(rig, pod)

    await ascent.resolve(LOOK)

    assert (ascent.bytes_before, ascent.saw_holding) == (6 * GIB, True)
    assert not pod.shim.has_exited


async def test_sigterm_is_late_for_those_who_ignore_it(rig: AgentRig) -> None:
    """The stage ends in time, says so, and counts nobody as ended."""
    pod = await rig.start_pod("pod", "--ignore-sigterm")
    ascent = _ascent(rig, pod)

    await ascent.sigterm(Rung(StageName.SIGTERM, timedelta(milliseconds=50)))

    assert ascent.stages[0].result == "late"
    assert ascent.stages[0].milliseconds > 45
    assert ascent.processes_ended == 0


async def test_clean_reads_lie_as_far_apart_as_asked(rig: AgentRig) -> None:
    """Two looks in a row are not two reads."""
    pod = await rig.start_pod(memory="0")
    ascent = _ascent(rig, pod)
    await ascent.sigkill(Rung(StageName.SIGKILL, LIMITS.sigkill))

    await ascent.verify(Rung(StageName.VERIFY, LIMITS.verify), apart=LIMITS.clean_spacing)
    evidence = ascent.evidence(held_before=False, may_restart=True, rebooted=False)

    assert evidence.clean_reads >= 2
    assert evidence.clean_for >= LIMITS.clean_spacing
    assert ascent.stages[-1].result == "done"


async def _verified(
    rig: AgentRig, pod: RunningPod, fault: Callable[[], None], *, after: float = 0.2
) -> Evidence:
    """Have NVML fail so many seconds after a stage of one began; tell what is seen at its end."""
    await rig.start_agent(nvml_timeout=5)
    ascent = _ascent(rig, pod)
    await ascent.resolve(Rung(StageName.RESOLVE, timedelta(seconds=5)))
    verifying = asyncio.create_task(
        ascent.verify(Rung(StageName.VERIFY, timedelta(seconds=1)), apart=timedelta(seconds=0.5))
    )
    await asyncio.sleep(after)
    fault()
    await verifying
    rig.node.clear_faults()
    return ascent.evidence(held_before=True, may_restart=False, rebooted=False)


async def test_a_look_that_is_cut_off_leaves_what_was_amiss(rig: AgentRig) -> None:
    """NVML slower than the stage: the memory that was seen held a moment ago is still named."""
    pod = await rig.start_pod()

    evidence = await _verified(rig, pod, lambda: rig.node.hang(COMPUTE_LIST))

    assert (evidence.blind, evidence.holding) == (None, 1)


async def test_a_look_that_is_cut_off_leaves_why_nobody_could_see(rig: AgentRig) -> None:
    """A blind NVML that is slow as well does not hide what it is blind of."""
    pod = await rig.start_pod()
    rig.node.inject("nvmlDeviceGetGraphicsRunningProcesses_v3", rc=15)

    evidence = await _verified(rig, pod, lambda: rig.node.hang(COMPUTE_LIST))

    assert evidence.blind is not None
    assert "stage" not in evidence.blind


async def test_a_look_that_is_cut_off_after_a_clean_one_is_blind(rig: AgentRig) -> None:
    """Clean may have changed since; nothing is proven by it."""
    pod = await rig.start_pod(memory="0")
    await _ascent(rig, pod).sigkill(Rung(StageName.SIGKILL, timedelta(seconds=5)))

    evidence = await _verified(rig, pod, lambda: rig.node.hang(COMPUTE_LIST))

    assert evidence.blind == "NVML: NVML gave no answer within this stage"
    assert evidence.clean_reads == 0


async def test_a_look_that_fails_by_itself_is_blind(rig: AgentRig) -> None:
    """Only time may run out on a look: an NVML that says no is not to be believed."""
    pod = await rig.start_pod()

    evidence = await _verified(rig, pod, lambda: rig.node.inject(COMPUTE_LIST, rc=15))

    assert evidence.blind is not None


async def test_a_stage_that_saw_nothing_at_all_is_blind(rig: AgentRig) -> None:
    """What an earlier stage saw is too old to speak for this one."""
    pod = await rig.start_pod()

    evidence = await _verified(rig, pod, lambda: rig.node.hang(COMPUTE_LIST), after=0)

    assert evidence.blind is not None


async def test_before_any_look_there_is_no_evidence(rig: AgentRig) -> None:
    """An ascent that has not looked is blind."""
    pod = await rig.start_pod(memory="0")

    assert _ascent(rig, pod).is_blind
