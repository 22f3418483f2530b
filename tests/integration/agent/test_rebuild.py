"""A ledger whose disk was lost is filled from the Sessions before anyone is served."""

import asyncio
from typing import Any

from tests.support.agent_rig import GPU, NODE, AgentRig

from gpusession.api.release import Verdict
from gpusession.api.session import Reason


def _session(uid: str, pod_uid: str, **status: Any) -> dict[str, Any]:
    """Give a Session of this node as the apiserver lists it."""
    bound = {
        "phase": "Active",
        "nodeName": NODE,
        "podUID": pod_uid,
        "gpuUUIDs": [GPU],
        "seenHolding": True,
        "activeSince": "2026-01-01T00:00:00Z",
    }
    return {
        "metadata": {"name": uid, "namespace": "default", "uid": uid},
        "spec": {"podRefs": [{"name": "pod"}]},
        "status": bound | status,
    }


async def _lose_the_disk(rig: AgentRig) -> None:
    await rig.lose_ledger()
    await rig.rebuild.run()


async def test_a_lost_ledger_knows_the_living_sessions_of_its_node_again(rig: AgentRig) -> None:
    """Active and PendingDestroy of this node; not the ended, not those of other nodes."""
    rig.apiserver.sessions = [
        _session("active", "p1"),
        _session("ending", "p2", phase="PendingDestroy"),
        _session("ended", "p3", phase="Destroyed"),
        _session("elsewhere", "p4", nodeName="node-b"),
        _session("never-active", "p5", phase="PendingDestroy", activeSince=None),
    ]

    await _lose_the_disk(rig)

    rows = await rig.ledger.rows()
    assert {row.session_uid for row in rows} == {"active", "ending"}
    assert all(row.seen_holding for row in rows)


async def test_after_a_lost_ledger_a_pod_still_has_one_session(rig: AgentRig) -> None:
    """The newcomer is refused although the agent never saw the owner bind."""
    pod = await rig.start_pod()
    rig.apiserver.sessions = [_session("owner", pod.uid)]
    await _lose_the_disk(rig)

    report = await rig.binder.bind(rig.bind_request(pod, "newcomer"))

    assert (report.bound, report.reason) == (False, Reason.POD_IN_USE)


async def test_after_a_lost_ledger_what_was_held_counts_as_seen(rig: AgentRig) -> None:
    """The Session's own record says that it held: then free is Freed, not NothingHeld."""
    pod = await rig.start_pod(memory="0")
    rig.apiserver.sessions = [_session("session-1", pod.uid)]
    await _lose_the_disk(rig)

    report = await rig.releaser.release(rig.order(pod))

    assert report.verdict is Verdict.FREED


async def test_after_a_lost_ledger_what_was_only_given_is_no_sight(rig: AgentRig) -> None:
    """The device is looked at again, and nobody claims that it was held before."""
    pod = await rig.start_pod(memory="0")
    rig.apiserver.sessions = [_session("session-1", pod.uid, seenHolding=False)]
    await _lose_the_disk(rig)

    report = await rig.releaser.release(rig.order(pod))

    assert (report.verdict, report.gpu_uuids) == (Verdict.NOTHING_HELD, (GPU,))


async def test_a_ledger_that_was_kept_is_left_as_it_is(rig: AgentRig) -> None:
    """The list is asked for once in the life of a file."""
    await rig.rebuild.run()

    await rig.start_agent()
    await rig.rebuild.run()

    assert rig.apiserver.requests["sessions"] == 1


async def test_nobody_is_served_while_the_apiserver_is_silent(rig: AgentRig) -> None:
    """The rebuild waits, says that it is needed, and goes on by itself."""
    rig.apiserver.is_down = True
    running = asyncio.create_task(rig.rebuild.run())
    await asyncio.sleep(0.2)
    waited = rig.rebuild.needed and not running.done()

    rig.apiserver.is_down = False
    await running

    assert waited
    assert not rig.rebuild.needed
