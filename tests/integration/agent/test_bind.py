"""Binds: who may have which Pod, and what is noted of it."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.agent_rig import GIB, GPU, NODE, OTHER_GPU, AgentRig, RunningPod, owner

from gpusession.agent.processes import ProcessId
from gpusession.api.release import BindReport
from gpusession.api.session import Reason
from gpusession.errors import ApiUnavailable

UNKNOWN_GPU = "GPU-5a2c0000-0000-4000-8000-0000000000ff"
MIG = "MIG-5a2c0000-0000-4000-8000-0000000000aa"

Change = Callable[[dict[str, Any]], object]


async def test_a_bind_tells_what_nvml_shows_of_the_pod(rig: AgentRig) -> None:
    """Devices and bytes of the Pod's processes come back, and the boot they belong to."""
    pod = await rig.start_pod()

    report = await rig.binder.bind(rig.bind_request(pod))

    assert report == BindReport(
        bound=True,
        gpu_uuids=(GPU,),
        seen_holding=True,
        memory_bytes=6 * GIB,
        boot_id=rig.boot_id,
    )


async def test_a_bind_tells_what_kubelet_has_given_before_any_of_it_is_held(
    rig: AgentRig,
) -> None:
    """The device is recorded, and nobody claims to have seen it held."""
    pod = await rig.start_pod(memory="0")
    rig.give(pod, f"{OTHER_GPU}::4")

    report = await rig.binder.bind(rig.bind_request(pod))
    row = await rig.ledger.find("session-1")

    assert (report.bound, report.gpu_uuids, report.seen_holding) == (True, (OTHER_GPU,), False)
    assert row is not None
    assert (row.gpu_uuids, row.seen_holding) == ((OTHER_GPU,), False)


async def test_what_is_given_and_what_is_seen_are_both_told(rig: AgentRig) -> None:
    """A privileged Pod may hold on a GPU that it was never given."""
    pod = await rig.start_pod()
    rig.give(pod, OTHER_GPU)

    report = await rig.binder.bind(rig.bind_request(pod))

    assert (report.gpu_uuids, report.seen_holding) == ((GPU, OTHER_GPU), True)


async def test_a_given_device_that_nvml_does_not_know_binds_nothing(rig: AgentRig) -> None:
    """Nobody could ever see it free: a GPU that fell off the bus, or a MIG device that went."""
    pod = await rig.start_pod(memory="0")
    rig.give(pod, UNKNOWN_GPU)

    report = await rig.binder.bind(rig.bind_request(pod))

    assert (report.bound, report.reason) == (False, Reason.DEVICE_NOT_OBSERVABLE)
    assert UNKNOWN_GPU in report.message
    assert await rig.ledger.find("session-1") is None


async def test_a_given_mig_device_is_recorded_by_its_own_uuid(rig: AgentRig) -> None:
    """NVML knows it by that name as it knows GPUs."""
    rig.node.add_device(MIG)
    pod = await rig.start_pod(memory="0")
    rig.give(pod, MIG)

    report = await rig.binder.bind(rig.bind_request(pod))

    assert (report.bound, report.gpu_uuids) == (True, (MIG,))


async def test_ids_that_are_no_uuids_leave_it_to_nvml(rig: AgentRig) -> None:
    """A device plugin may call its devices what it likes."""
    pod = await rig.start_pod()
    rig.give(pod, "0", "nvidia1", f"{GPU}-3")

    report = await rig.binder.bind(rig.bind_request(pod))

    assert (report.bound, report.gpu_uuids) == (True, (GPU,))


async def test_a_kubelet_that_cannot_tell_leaves_it_to_nvml(rig: AgentRig) -> None:
    """It knows no such Pod; NVML's lists show what the Pod holds."""
    pod = await rig.start_pod()
    rig.given.clear()

    report = await rig.binder.bind(rig.bind_request(pod))

    assert (report.bound, report.gpu_uuids) == (True, (GPU,))


async def test_a_later_bind_mends_what_kubelet_could_not_tell(rig: AgentRig) -> None:
    """The controller repeats every bind now and then."""
    pod = await rig.start_pod(memory="0")
    rig.given.clear()
    await rig.binder.bind(rig.bind_request(pod))
    rig.give(pod, OTHER_GPU)

    report = await rig.binder.bind(rig.bind_request(pod))

    assert report.gpu_uuids == (OTHER_GPU,)


async def test_a_repeated_bind_answers_the_same_and_remembers_sightings(rig: AgentRig) -> None:
    """GPUs seen once stay seen when the memory is gone."""
    pod = await rig.start_pod()
    first = await rig.binder.bind(rig.bind_request(pod))
    for row in (rig.node.state_dir / "allocations").iterdir():
        row.unlink()

    again = await rig.binder.bind(rig.bind_request(pod))

    assert (again.bound, again.gpu_uuids, again.memory_bytes) == (True, first.gpu_uuids, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda pod: pod["metadata"].update(uid="another"), Reason.POD_REPLACED),
        (lambda pod: pod["metadata"].update(labels={}), Reason.POD_NOT_MANAGED),
        (
            lambda pod: pod["metadata"].update(labels={"gpusession.dev/use": "shared"}),
            Reason.SHARED_NOT_SUPPORTED,
        ),
        (
            lambda pod: pod["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"),
            Reason.POD_TERMINATED,
        ),
        (lambda pod: pod["spec"].pop("nodeName"), Reason.POD_UNSCHEDULED),
        (lambda pod: pod["spec"].update(nodeName="node-b"), Reason.AGENT_REFUSED),
        (lambda pod: pod["status"].update(phase="Pending"), Reason.POD_NOT_RUNNING),
        (lambda pod: pod["status"].update(phase="Failed"), Reason.POD_TERMINATED),
    ],
    ids=lambda value: value if isinstance(value, Reason) else "",
)
async def test_a_pod_that_may_not_be_bound_is_refused(
    rig: AgentRig, change: Change, reason: Reason
) -> None:
    """Each refusal has its reason, and leaves no row."""
    pod = await rig.start_pod(memory="0")
    change(rig.apiserver.pods["default", pod.name])

    report = await rig.binder.bind(rig.bind_request(pod))

    assert (report.bound, report.reason) == (False, reason)
    assert await rig.ledger.find("session-1") is None


async def test_a_pod_that_does_not_exist_is_not_found(rig: AgentRig) -> None:
    """The apiserver's 404 is evidence."""
    pod = await rig.start_pod(memory="0")
    rig.apiserver.pods.clear()

    assert (await rig.binder.bind(rig.bind_request(pod))).reason is Reason.POD_NOT_FOUND


async def test_an_apiserver_without_an_answer_binds_nothing(rig: AgentRig) -> None:
    """Nobody knows whether the Pod consents."""
    pod = await rig.start_pod(memory="0")
    rig.apiserver.is_down = True

    with pytest.raises(ApiUnavailable):
        await rig.binder.bind(rig.bind_request(pod))
    assert await rig.ledger.find("session-1") is None


async def _blind(rig: AgentRig) -> None:
    rig.node.inject("nvmlDeviceGetComputeRunningProcesses_v3", rc=999)


async def _unproven(rig: AgentRig) -> None:
    rig.socket.unlink()


@pytest.mark.parametrize("spoil", [_blind, _unproven])
async def test_a_node_that_cannot_be_observed_binds_nothing(
    rig: AgentRig, spoil: Callable[[AgentRig], Any]
) -> None:
    """A Session must not start where its end could never be proven."""
    pod = await rig.start_pod(memory="0")
    await spoil(rig)

    report = await rig.binder.bind(rig.bind_request(pod))

    assert (report.bound, report.reason) == (False, Reason.DEVICE_NOT_OBSERVABLE)
    assert report.message


@pytest.mark.parametrize("phase", ["Pending", "Active", "PendingDestroy"])
async def test_a_second_session_gets_pod_in_use(rig: AgentRig, phase: str) -> None:
    """One Session for a Pod, as long as the first one lives."""
    rig.apiserver.sessions = [owner("session-1", phase)]
    pod = await rig.start_pod(memory="0")
    await rig.binder.bind(rig.bind_request(pod))

    assert (await rig.binder.bind(rig.bind_request(pod, "session-2"))).reason is Reason.POD_IN_USE


@pytest.mark.parametrize(
    "sessions",
    [[], [owner("a namesake", "Active")], [owner("session-1", "Destroyed")]],
    ids=["gone", "namesake", "destroyed"],
)
async def test_a_claim_whose_session_has_ended_is_closed(
    rig: AgentRig, sessions: list[dict[str, object]]
) -> None:
    """It ended while the agent was away; its row must not keep the Pod for ever."""
    pod = await rig.start_pod(memory="0")
    await rig.binder.bind(rig.bind_request(pod))
    rig.apiserver.sessions = sessions

    report = await rig.binder.bind(rig.bind_request(pod, "session-2"))

    assert report.bound
    assert await rig.ledger.living_of_pod(pod.uid) == "session-2"


async def test_a_claim_stands_while_nobody_can_say_whether_its_session_lives(
    rig: AgentRig,
) -> None:
    """No answer is no evidence that the owner has ended."""
    pod = await rig.start_pod(memory="0")
    await rig.binder.bind(rig.bind_request(pod))
    rig.apiserver.hides_sessions = True

    with pytest.raises(ApiUnavailable):
        await rig.binder.bind(rig.bind_request(pod, "session-2"))

    assert await rig.ledger.living_of_pod(pod.uid) == "session-1"


async def test_a_released_session_is_not_bound_again(rig: AgentRig) -> None:
    """A late bind must not revive what is done."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    await rig.releaser.release(rig.order(pod))

    assert (await rig.binder.bind(rig.bind_request(pod))).reason is Reason.AGENT_REFUSED


async def test_a_session_keeps_its_pod(rig: AgentRig) -> None:
    """A Pod of the same name with another uid is another Pod."""
    pod = await rig.start_pod(memory="0")
    await rig.binder.bind(rig.bind_request(pod))
    successor = RunningPod(
        pod.name, "11111111-2222-4333-8444-555555555555", pod.cgroup, "", pod.shim, pod.log
    )
    rig.apiserver.add_pod(pod.name, uid=successor.uid, node=NODE, use="exclusive")

    report = await rig.binder.bind(rig.bind_request(successor))

    assert (report.bound, report.reason) == (False, Reason.POD_REPLACED)


async def test_strangers_on_the_gpus_are_noted_at_the_bind(rig: AgentRig) -> None:
    """Who was there before the Session is not the Session's."""
    pod, other = await rig.start_pod(memory="0"), await rig.start_pod("other")
    pid = rig.pids(other)[0]
    (rig.root / "proc" / str(pid) / "cgroup").write_text("0::/system.slice/mps.service\n")
    await rig.binder.bind(rig.bind_request(pod))

    row = await rig.ledger.find("session-1")

    assert row is not None
    assert row.baseline == {rig.processes.identify(pid)}
    assert isinstance(next(iter(row.baseline)), ProcessId)
