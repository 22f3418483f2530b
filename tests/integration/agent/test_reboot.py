"""What a reboot of the node proves, and for which Pods: those that have not run since."""

import os
import signal

import pytest
from tests.support.agent_rig import GIB, AgentRig

from gpusession.api.release import Verdict


async def test_a_reboot_since_the_bind_is_node_gone(rig: AgentRig) -> None:
    """GPU memory does not survive a reboot, even if NVML cannot see yet."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    os.kill(rig.pids(pod)[0], signal.SIGKILL)
    await pod.shim.wait()
    rig.boot_id = "boot-2"
    await rig.start_agent()
    rig.node.inject("*", rc=999)

    assert (await rig.releaser.release(rig.order(pod))).verdict is Verdict.NODE_GONE


async def test_a_pod_that_came_back_after_a_reboot_is_released_like_any_other(
    rig: AgentRig,
) -> None:
    """Kubelet starts the same Pod again: what it holds now is not gone with the node."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    rig.boot_id = "boot-2"
    await rig.start_agent()

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.FREED
    assert report.memory_bytes_before == 6 * GIB


@pytest.mark.parametrize("memory", ["6Gi", "0"])
async def test_a_pod_that_was_seen_alive_since_the_reboot_is_not_gone_with_it(
    rig: AgentRig, memory: str
) -> None:
    """What it may have held since is looked for, even if kubelet ended it before the release."""
    pod = await rig.start_pod(memory=memory)
    await rig.binder.bind(rig.bind_request(pod))
    rig.boot_id = "boot-2"
    await rig.start_agent()
    await rig.observer.observe()
    os.kill(rig.pids(pod)[0], signal.SIGKILL)
    await pod.shim.wait()
    rig.node.inject("*", rc=999)

    assert (await rig.releaser.release(rig.order(pod))).verdict is Verdict.UNKNOWN


async def test_a_pod_that_a_release_met_alive_after_the_reboot_is_not_gone_with_it(
    rig: AgentRig,
) -> None:
    """The first try ended it and could not see its memory; the second knows no more."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    rig.boot_id = "boot-2"
    await rig.start_agent()
    rig.node.inject("*", rc=999)
    await rig.releaser.release(rig.order(pod))
    assert pod.shim.has_exited

    assert (await rig.releaser.release(rig.order(pod))).verdict is Verdict.UNKNOWN
