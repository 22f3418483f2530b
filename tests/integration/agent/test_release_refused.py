"""Releases by an agent that may not signal: without CAP_KILL, another user's processes."""

import pytest
from tests.support.agent_rig import AgentRig
from tests.support.capabilities import CAP_KILL, may_drop, only

from gpusession.api.release import Verdict

NOBODY = "65534"

pytestmark = pytest.mark.skipif(not may_drop(), reason="needs root, to have another user's process")


async def test_a_process_that_may_not_be_signalled_is_named(rig: AgentRig) -> None:
    """AppArmor refuses in the same way: the status says so, instead of StillHeld for ever."""
    pod = await rig.start_pod("pod", "--uid", NOBODY)
    await rig.binder.bind(rig.bind_request(pod))

    with only():
        report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.HELD
    assert f"pids that the agent may not signal: ({rig.pids(pod)[0]},)" in report.message


async def test_with_the_capability_it_is_ended(rig: AgentRig) -> None:
    """The control of the test above, and a message without such words."""
    pod = await rig.start_pod("pod", "--uid", NOBODY)
    await rig.binder.bind(rig.bind_request(pod))

    with only(CAP_KILL):
        report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.FREED
    assert "may not" not in report.message


async def test_one_that_was_refused_and_ended_by_itself_is_not_named(rig: AgentRig) -> None:
    """Only who is left is worth a word, and who is left makes it Held."""
    pod = await rig.start_pod("pod", "--uid", NOBODY, "--exit-after", "0.1")
    await rig.binder.bind(rig.bind_request(pod))

    with only():
        report = await rig.releaser.release(rig.order(pod))

    assert ("may not" in report.message) == (report.verdict is Verdict.HELD)
