"""Releases of a Pod that was given a GPU and never seen holding it."""

import subprocess
from collections.abc import Callable

from tests.support.agent_rig import GIB, GPU, OTHER_GPU, AgentRig, RunningPod

from gpusession.api.release import Mode, Verdict


async def _bound_and_idle(rig: AgentRig) -> RunningPod:
    pod = await rig.start_pod(memory="0")
    rig.give(pod, GPU)
    await rig.binder.bind(rig.bind_request(pod))
    return pod


async def test_what_was_given_and_never_held_ends_as_nothing_held(rig: AgentRig) -> None:
    """Given is not held: Freed would be a lie."""
    pod = await _bound_and_idle(rig)

    report = await rig.releaser.release(rig.order(pod, gpu_uuids=(GPU,)))

    assert (report.verdict, report.seen_holding) == (Verdict.NOTHING_HELD, False)
    assert report.gpu_uuids == (GPU,)


async def test_a_stranger_on_a_given_device_counts_as_held(
    rig: AgentRig, start_holder: Callable[..., subprocess.Popen[str]]
) -> None:
    """It came after the bind and belongs to no Pod: it may be the Session's."""
    pod = await _bound_and_idle(rig)
    start_holder(GIB)

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.HELD
    assert "no known Pod" in report.message


async def test_a_sick_given_device_is_unknown(rig: AgentRig) -> None:
    """Nobody can look at the one GPU that the Pod has."""
    pod = await _bound_and_idle(rig)
    rig.node.inject("nvmlDeviceGetComputeRunningProcesses_v3", uuid=GPU, rc=15)

    assert (await rig.releaser.release(rig.order(pod))).verdict is Verdict.UNKNOWN


async def test_beside_a_sick_gpu_the_given_device_is_enough(rig: AgentRig) -> None:
    """Where kubelet says which GPU the Pod has, no other one needs to be seen."""
    pod = await _bound_and_idle(rig)
    rig.node.inject("nvmlDeviceGetComputeRunningProcesses_v3", uuid=OTHER_GPU, rc=15)

    assert (await rig.releaser.release(rig.order(pod))).verdict is Verdict.NOTHING_HELD


async def test_a_lost_ledger_does_not_turn_given_into_held(rig: AgentRig) -> None:
    """The order names the device, and says that nobody saw it held."""
    pod = await _bound_and_idle(rig)
    await rig.lose_ledger()

    report = await rig.releaser.release(rig.order(pod, gpu_uuids=(GPU,)))

    assert report.verdict is Verdict.NOTHING_HELD


async def test_held_only_at_the_release_is_freed(rig: AgentRig) -> None:
    """The climb itself sees it, and every later report says so."""
    pod = await rig.start_pod()
    rig.give(pod, GPU)

    held = await rig.releaser.release(rig.order(pod, mode=Mode.VERIFY))
    freed = await rig.releaser.release(rig.order(pod))

    assert (held.verdict, held.seen_holding) == (Verdict.HELD, True)
    assert (freed.verdict, freed.seen_holding) == (Verdict.FREED, True)
