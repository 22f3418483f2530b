"""One climb, stage by stage, on real processes."""

from datetime import timedelta

from tests.support.agent_rig import GIB, AgentRig, RunningPod

from gpusession.agent.ascent import Ascent
from gpusession.agent.gpu_view import GpuView
from gpusession.rules.ladder import Limits, Rung, StageName

LIMITS = Limits()
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


async def test_before_any_look_there_is_no_evidence(rig: AgentRig) -> None:
    """An ascent that has not looked is blind."""
    pod = await rig.start_pod(memory="0")

    assert _ascent(rig, pod).is_blind
