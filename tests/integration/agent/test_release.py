"""Releases of real processes, seen by the real pynvml over the simulator."""

import asyncio
import os
import signal
from datetime import timedelta

import pytest
from tests.support.agent_rig import GIB, GPU, OTHER_GPU, REAL, AgentRig, owner
from tests.support.nvml_simulator import hold, release_hold, start_time, write_row

from gpusession.agent.ledger_row import RowState
from gpusession.api.release import Mode, ReleaseReport, Verdict
from gpusession.api.session import Reason


def _stages(report: ReleaseReport) -> dict[str, str]:
    return {stage.name: stage.result for stage in report.stages}


async def _has_begun(rig: AgentRig) -> None:
    """Wait until the intent is on disk."""
    for _ in range(1000):
        row = await rig.ledger.find("session-1")
        if row is not None and row.state is not RowState.BOUND:
            return
        await asyncio.sleep(0.002)
    raise AssertionError("no release has begun")


async def test_held_memory_is_freed_and_the_bytes_say_so(rig: AgentRig) -> None:
    """A bound Pod's process is ended by SIGTERM and its memory seen to go."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))

    report = await rig.releaser.release(rig.order(pod))

    assert (report.verdict, report.reason) == (Verdict.FREED, Reason.FREED)
    assert (report.memory_bytes_before, report.memory_bytes_after) == (6 * GIB, 0)
    assert (report.gpu_uuids, report.processes_ended, report.attempts) == ((GPU,), 1, 1)
    assert _stages(report)["sigterm"] == "done"
    assert report.state.reason is Reason.NOTHING_TO_CLEAR


async def test_a_process_that_ignores_sigterm_is_killed(rig: AgentRig) -> None:
    """SIGKILL follows when SIGTERM's time is up."""
    pod = await rig.start_pod("pod", "--ignore-sigterm")
    await rig.binder.bind(rig.bind_request(pod))

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.FREED
    assert _stages(report) == {
        "resolve": "done", "sigterm": "late", "sigkill": "done", "verify": "done",
    }  # fmt: skip


async def test_a_child_that_outlives_its_parent_is_ended_too(rig: AgentRig) -> None:
    """SIGTERM ends only the parent here; the child that holds the memory goes as well."""
    pod = await rig.start_pod("pod", "--fork-child", "--exit-after", "0.05")
    await rig.binder.bind(rig.bind_request(pod))
    await asyncio.sleep(0.15)

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.FREED
    assert report.memory_bytes_before == 6 * GIB
    assert rig.pids(pod) == []


async def test_a_pod_that_never_held_is_nothing_held(rig: AgentRig) -> None:
    """Without any sighting the verdict does not claim that something was freed."""
    pod = await rig.start_pod(memory="0")
    await rig.binder.bind(rig.bind_request(pod))

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.NOTHING_HELD
    assert report.gpu_uuids == ()


async def test_memory_seen_by_the_observer_counts_after_the_process_has_died(
    rig: AgentRig,
) -> None:
    """A Pod that allocated after its bind and crashed before the release was Freed."""
    pod = await rig.start_pod(memory="0")
    await rig.binder.bind(rig.bind_request(pod))
    born = start_time(rig.pids(pod)[0])
    write_row(rig.node.state_dir, GPU, GIB, kind="compute", pid=rig.pids(pod)[0], born=born)
    await rig.observer.observe()
    os.kill(rig.pids(pod)[0], signal.SIGKILL)
    await pod.shim.wait()

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.FREED
    assert report.gpu_uuids == (GPU,)


async def test_blind_nvml_is_unknown_and_says_why(rig: AgentRig) -> None:
    """Nobody could look, so nothing is claimed, although the processes are gone."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    rig.node.inject("nvmlDeviceGetComputeRunningProcesses_v3", rc=15)

    report = await rig.releaser.release(rig.order(pod))

    assert (report.verdict, report.reason) == (Verdict.UNKNOWN, Reason.NOT_OBSERVABLE)
    assert "lost" in report.message.lower()
    assert report.state.reason is Reason.WAITING_FOR_RELEASE


async def test_nvml_that_goes_blind_in_the_middle_is_unknown_until_it_sees(
    rig: AgentRig,
) -> None:
    """The first bytes are kept, and a later call that can see completes."""
    pod = await rig.start_pod("pod", "--ignore-sigterm")
    await rig.binder.bind(rig.bind_request(pod))
    releasing = asyncio.create_task(rig.releaser.release(rig.order(pod)))
    await _has_begun(rig)
    rig.node.inject("nvmlDeviceGetComputeRunningProcesses_v3", rc=999)
    blind = await releasing
    rig.node.clear_faults()

    report = await rig.releaser.release(rig.order(pod))

    assert blind.verdict is Verdict.UNKNOWN
    assert (report.verdict, report.attempts) == (Verdict.FREED, 2)
    assert report.memory_bytes_before == 6 * GIB


async def test_nvml_that_hangs_is_unknown_after_the_ladder(rig: AgentRig) -> None:
    """A call that never returns holds the release up for its stages and no longer."""
    await rig.start_agent(**REAL)
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    rig.node.hang("nvmlDeviceGetComputeRunningProcesses_v3")

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.UNKNOWN
    assert _stages(report)["verify"] == "blind"


async def test_a_process_of_no_pod_on_the_sessions_gpu_keeps_it_held(rig: AgentRig) -> None:
    """Who came after the bind and belongs to nobody may be the Session's own."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    row = hold(rig.node.state_dir, GPU, GIB)

    held = await rig.releaser.release(rig.order(pod))
    release_hold(row)
    freed = await rig.releaser.release(rig.order(pod))

    assert (held.verdict, held.reason) == (Verdict.HELD, Reason.STILL_HELD)
    assert str(os.getpid()) in held.message
    assert freed.verdict is Verdict.FREED


async def test_a_process_of_no_pod_from_before_the_bind_is_not_the_sessions(
    rig: AgentRig,
) -> None:
    """A display server or MPS daemon must not hold back every Session on its GPU."""
    pod = await rig.start_pod()
    server = os.getpid()
    (rig.root / "proc" / str(server)).mkdir()
    (rig.root / "proc" / str(server) / "cgroup").write_text("0::/system.slice/mps.service\n")
    (rig.root / "proc" / str(server) / "stat").symlink_to(f"/proc/{server}/stat")
    hold(rig.node.state_dir, GPU, GIB)
    await rig.binder.bind(rig.bind_request(pod))

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.FREED


async def test_another_pod_on_the_same_gpu_is_left_alone(rig: AgentRig) -> None:
    """On a time-sliced GPU only the Session's own Pod is ended and counted."""
    pod, other = await rig.start_pod(), await rig.start_pod("other")
    await rig.binder.bind(rig.bind_request(pod))

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.FREED
    assert report.memory_bytes_before == 6 * GIB
    assert not other.shim.has_exited


async def test_memory_that_outlives_its_process_is_held(rig: AgentRig) -> None:
    """A dead process that NVML still lists has not let go."""
    await rig.start_agent(**REAL)
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    rig.node.set_lag(1500)

    held = await rig.releaser.release(rig.order(pod))
    await asyncio.sleep(1.2)
    freed = await rig.releaser.release(rig.order(pod))

    assert (held.verdict, held.memory_bytes_after) == (Verdict.HELD, 6 * GIB)
    assert (freed.verdict, freed.attempts) == (Verdict.FREED, 2)


async def test_a_pid_that_someone_else_got_is_not_the_sessions(rig: AgentRig) -> None:
    """A row of NVML under the pid of a living stranger with another start is nobody's."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    born = start_time(stranger.pid) - 1
    write_row(rig.node.state_dir, GPU, GIB, kind="compute", pid=stranger.pid, born=born)

    report = await rig.releaser.release(rig.order(pod))
    lives = stranger.returncode is None
    stranger.kill()
    await stranger.wait()

    assert report.verdict is Verdict.FREED
    assert lives


async def test_verify_mode_never_signals(rig: AgentRig) -> None:
    """While someone else's deletion runs, the agent only looks."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))

    report = await rig.releaser.release(rig.order(pod, mode=Mode.VERIFY))

    assert report.verdict is Verdict.HELD
    assert set(_stages(report)) == {"resolve", "verify"}
    assert not pod.shim.has_exited


async def test_a_withdrawn_label_is_respected_whatever_the_order_says(rig: AgentRig) -> None:
    """The Pod is the truth: without its label nothing is signalled."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    rig.apiserver.add_pod(pod.name, uid=pod.uid, node="node-a", use=None)

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.HELD
    assert "withdrew" in report.message
    assert not pod.shim.has_exited


async def test_an_unproven_pid_namespace_is_unknown_and_nothing_is_signalled(
    rig: AgentRig,
) -> None:
    """Without kubelet's socket the lists prove nothing and the pids mean nothing."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    rig.socket.unlink()

    report = await rig.releaser.release(rig.order(pod))

    assert (report.verdict, report.reason) == (Verdict.UNKNOWN, Reason.NOT_OBSERVABLE)
    assert "pid namespace" in report.message
    assert not pod.shim.has_exited


async def test_a_repeat_after_done_answers_with_the_first_report(rig: AgentRig) -> None:
    """The same question gets the same answer, also from a new agent process."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    first = await rig.releaser.release(rig.order(pod))
    await rig.start_agent()

    assert await rig.releaser.release(rig.order(pod)) == first


async def test_a_pod_that_lives_again_reopens_the_case(rig: AgentRig) -> None:
    """A restarted container holds memory anew: the old verdict is not repeated."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    await rig.releaser.release(rig.order(pod))
    again = await rig.start_pod("again")
    move_to = rig.root / "proc" / str(rig.pids(again)[0]) / "cgroup"
    move_to.write_text(f"0::/{pod.cgroup}/x\n")
    rig.apiserver.add_pod(pod.name, uid=pod.uid, node="node-a", use="exclusive")

    report = await rig.releaser.release(rig.order(pod))

    assert (report.verdict, report.attempts) == (Verdict.FREED, 2)
    assert again.shim.has_exited or not rig.pids(again)


async def test_a_done_session_never_ends_the_next_ones_processes(rig: AgentRig) -> None:
    """A late repeat must not kill what another Session runs in the same Pod."""
    pod = await rig.start_pod(memory="0", use="exclusive")
    await rig.binder.bind(rig.bind_request(pod))
    first = await rig.releaser.release(rig.order(pod))
    again = await rig.start_pod("again")
    entry = rig.root / "proc" / str(rig.pids(again)[0]) / "cgroup"
    entry.write_text(f"0::/{pod.cgroup}/x\n")
    rig.apiserver.add_pod(pod.name, uid=pod.uid, node="node-a", use="exclusive")
    assert (await rig.binder.bind(rig.bind_request(pod, "session-2"))).bound

    repeat = await rig.releaser.release(rig.order(pod))

    assert repeat == first
    assert not again.shim.has_exited


async def test_two_calls_at_once_release_once(rig: AgentRig) -> None:
    """The second call joins the first: one attempt, one report."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))

    one, two = await asyncio.gather(
        rig.releaser.release(rig.order(pod)), rig.releaser.release(rig.order(pod))
    )

    assert one is two
    assert one.attempts == 1


async def test_a_release_goes_on_when_its_caller_goes_away(rig: AgentRig) -> None:
    """A dropped connection changes nothing; the repeat finds the result."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    caller = asyncio.create_task(rig.releaser.release(rig.order(pod)))
    await _has_begun(rig)
    caller.cancel()
    await rig.releaser.drain(within=timedelta(seconds=2))

    row = await rig.ledger.find("session-1")

    assert row is not None
    assert row.state is RowState.DONE


async def test_an_unknown_session_of_a_consenting_pod_is_adopted(rig: AgentRig) -> None:
    """A lost ledger does not leave the Pod's memory held for ever."""
    pod = await rig.start_pod()

    report = await rig.releaser.release(rig.order(pod, gpu_uuids=(GPU,), seen_holding=True))

    assert report.verdict is Verdict.FREED
    assert "adopted" in report.message


async def test_an_unknown_session_of_a_gone_pod_is_only_verified(rig: AgentRig) -> None:
    """Without row and Pod nothing may be signalled; what is seen decides."""
    pod = await rig.start_pod()
    del rig.apiserver.pods["default", pod.name]

    held = await rig.releaser.release(rig.order(pod, gpu_uuids=(GPU,), seen_holding=True))
    lived = not pod.shim.has_exited
    os.kill(rig.pids(pod)[0], signal.SIGKILL)
    await pod.shim.wait()
    freed = await rig.releaser.release(rig.order(pod, gpu_uuids=(GPU,), seen_holding=True))

    assert (held.verdict, lived) == (Verdict.HELD, True)
    assert freed.verdict is Verdict.FREED


async def test_a_session_that_never_got_its_pod_ends_nobody(rig: AgentRig) -> None:
    """PodInUse: deleting the second Session leaves the first one's processes alive."""
    rig.apiserver.sessions = [owner("session-1")]
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    refused = await rig.binder.bind(rig.bind_request(pod, "session-2"))

    report = await rig.releaser.release(rig.order(pod, "session-2"))

    assert refused.reason is Reason.POD_IN_USE
    assert report.verdict is Verdict.NOTHING_HELD
    assert not pod.shim.has_exited


async def test_an_order_for_another_pod_than_the_bound_one_is_refused(rig: AgentRig) -> None:
    """The ledger knows which Pod the Session has; nothing else is touched."""
    pod, other = await rig.start_pod(), await rig.start_pod("other")
    await rig.binder.bind(rig.bind_request(pod))

    report = await rig.releaser.release(rig.order(other))

    assert (report.verdict, report.reason) == (Verdict.UNKNOWN, Reason.AGENT_REFUSED)
    assert not other.shim.has_exited


async def test_no_intent_on_disk_means_no_signal(rig: AgentRig) -> None:
    """Where the ledger cannot be written nothing is done and nothing claimed."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    (rig.root / "ledger.sqlite").unlink()
    (rig.root / "ledger.sqlite").mkdir()
    await rig.start_agent()

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.UNKNOWN
    assert "ledger" in report.message
    assert not pod.shim.has_exited


async def test_a_gpu_of_the_session_that_is_no_more_is_unknown(rig: AgentRig) -> None:
    """A GPU off the bus, or a destroyed MIG device, was not seen clean by anybody."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))

    report = await rig.releaser.release(rig.order(pod, gpu_uuids=("MIG-gone",)))

    assert report.verdict is Verdict.UNKNOWN
    assert "MIG-gone" in report.message


async def test_another_sick_gpu_of_the_node_does_not_hold_the_session_back(
    rig: AgentRig,
) -> None:
    """What the Session was seen on can be read, and none of its processes live."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    rig.node.inject("nvmlDeviceGetComputeRunningProcesses_v3", uuid=OTHER_GPU, rc=15)

    assert (await rig.releaser.release(rig.order(pod))).verdict is Verdict.FREED


async def test_never_seen_holding_beside_a_sick_gpu_is_unknown(rig: AgentRig) -> None:
    """NothingHeld needs eyes on every GPU of the node, where nobody knows which the Pod has."""
    pod = await rig.start_pod(memory="0")
    await rig.binder.bind(rig.bind_request(pod))
    rig.node.inject("nvmlDeviceGetComputeRunningProcesses_v3", uuid=OTHER_GPU, rc=15)

    assert (await rig.releaser.release(rig.order(pod))).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("size", [None, 0], ids=["unknown size", "no bytes"])
async def test_a_process_without_a_size_still_holds(rig: AgentRig, size: int | None) -> None:
    """Where NVML cannot tell the bytes, being listed is holding."""
    pod = await rig.start_pod(memory="0")
    pid = rig.pids(pod)[0]
    write_row(rig.node.state_dir, GPU, size, kind="compute", pid=pid, born=start_time(pid))
    await rig.binder.bind(rig.bind_request(pod))

    held = await rig.releaser.release(rig.order(pod, mode=Mode.VERIFY))
    freed = await rig.releaser.release(rig.order(pod))

    assert held.verdict is Verdict.HELD
    assert freed.verdict is Verdict.FREED


async def test_bytes_before_outlive_a_process_that_went_before_the_first_look(
    rig: AgentRig,
) -> None:
    """The kubelet may be quicker than the release: then the ledger knows what was held."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    os.kill(rig.pids(pod)[0], signal.SIGKILL)
    await pod.shim.wait()

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.FREED
    assert (report.memory_bytes_before, report.memory_bytes_after) == (6 * GIB, 0)
