"""Whose an entry of NVML is, with real processes over the simulator."""

import asyncio
import os
import signal

from tests.support.agent_rig import GPU, OTHER_GPU, AgentRig
from tests.support.nvml_simulator import hold

from gpusession.agent.gpu_view import GpuView, Scene, sighting_of
from gpusession.agent.nvml import Blind, BlindReason


async def _seen(view: GpuView) -> Scene:
    scene = await view.look()
    assert isinstance(scene, Scene)
    return scene


async def test_entries_are_the_pods_or_strangers_or_anothers(rig: AgentRig) -> None:
    """Another Pod's entry is neither; one without any Pod is a stranger."""
    pod, _ = await rig.start_pod(), await rig.start_pod("other")
    hold(rig.node.state_dir, OTHER_GPU, 1)
    view = GpuView(rig.nvml, rig.processes)

    sighting = sighting_of(await _seen(view), pod.uid)

    assert [holder.pid for holder in sighting.holders] == rig.pids(pod)
    assert [(s.pid, s.gpu_uuid) for s in sighting.strangers] == [(os.getpid(), OTHER_GPU)]
    assert not sighting.strangers[0].is_placed


async def test_a_listed_process_that_has_exited_is_still_who_it_was(rig: AgentRig) -> None:
    """NVML may list a process for longer than it lives; a neighbour's is no stranger then."""
    pod = await rig.start_pod()
    rig.node.set_lag(5000)
    view = GpuView(rig.nvml, rig.processes)
    await _seen(view)
    os.kill(rig.pids(pod)[0], signal.SIGKILL)
    await pod.shim.wait()

    late, never_looked = await _seen(view), await _seen(GpuView(rig.nvml, rig.processes))

    assert sighting_of(late, pod.uid).gpu_uuids == {GPU}
    assert sighting_of(late, "another").strangers == ()
    assert [s.gpu_uuid for s in sighting_of(never_looked, pod.uid).strangers] == [GPU]


async def test_a_successor_under_the_same_pid_inherits_nothing(rig: AgentRig) -> None:
    """Another start time is another process, whatever was known of the pid."""
    pod = await rig.start_pod()
    view = GpuView(rig.nvml, rig.processes)
    await _seen(view)
    entry = rig.root / "proc" / str(rig.pids(pod)[0])
    stat = (entry / "stat").read_text().split()
    (entry / "stat").unlink()
    (entry / "stat").write_text(" ".join([*stat[:21], "7", *stat[22:]]))
    (entry / "cgroup").write_text("0::/\n")

    sighting = sighting_of(await _seen(view), pod.uid)

    assert (len(sighting.holders), len(sighting.strangers)) == (0, 1)


async def test_a_pid_that_was_the_pods_stays_its_own_while_it_is_listed(rig: AgentRig) -> None:
    """Whoever signalled it knows it, even without an earlier look."""
    pod = await rig.start_pod()
    rig.node.set_lag(5000)
    pid = rig.pids(pod)[0]
    os.kill(pid, signal.SIGKILL)
    await pod.shim.wait()
    scene = await _seen(GpuView(rig.nvml, rig.processes))

    assert sighting_of(scene, pod.uid).gpu_uuids == frozenset()
    assert sighting_of(scene, pod.uid, own_pids={pid}).gpu_uuids == {GPU}


async def test_a_known_gpu_must_have_been_read(rig: AgentRig) -> None:
    """One that is not there any more was seen clean by nobody."""
    answer = await GpuView(rig.nvml, rig.processes).look({"GPU-none"})

    assert isinstance(answer, Blind)
    assert answer.reason is BlindReason.GPU_NOT_FOUND


async def test_askers_share_a_look_that_begins_after_they_asked(rig: AgentRig) -> None:
    """One that has begun may have missed what they ask about: they get the next, in common."""
    view = GpuView(rig.nvml, rig.processes)
    rig.node.inject("nvmlDeviceGetCount_v2", delay_ms=60)
    first = asyncio.create_task(_seen(view))
    await asyncio.sleep(0.02)

    earlier = asyncio.create_task(_seen(view))
    await asyncio.sleep(0.02)
    one, two = await asyncio.gather(earlier, _seen(view))

    assert first.done()
    assert one is two
    assert await first is not one


async def test_memory_that_nobody_is_listed_for_shows_as_excess(rig: AgentRig) -> None:
    """A process that the driver cannot name still uses the GPU beyond its idle baseline."""
    view = GpuView(rig.nvml, rig.processes)
    idle = await _seen(view)
    row = hold(rig.node.state_dir, GPU, 1 << 30)
    row.write_text(row.read_text().rsplit(" ", 1)[0] + " 1\n")  # of another pid namespace

    scene = await _seen(view)

    assert idle.excess[GPU] == 0
    assert (scene.excess[GPU], scene.excess[OTHER_GPU]) == (1 << 30, 0)


async def test_a_gpu_that_was_never_seen_idle_has_no_excess(rig: AgentRig) -> None:
    """Without a baseline nothing is claimed: it may always have been so."""
    row = hold(rig.node.state_dir, GPU, 1 << 30)
    row.write_text(row.read_text().rsplit(" ", 1)[0] + " 1\n")

    assert (await _seen(GpuView(rig.nvml, rig.processes))).excess[GPU] == 0
