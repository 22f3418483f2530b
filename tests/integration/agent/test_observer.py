"""What is noted of bound Pods while they live."""

import asyncio
from contextlib import suppress
from datetime import timedelta

from tests.support.agent_rig import GIB, GPU, AgentRig
from tests.support.nvml_simulator import start_time, write_row

from gpusession.agent.ledger_row import Row


async def _row(rig: AgentRig, session_uid: str = "session-1") -> Row:
    row = await rig.ledger.find(session_uid)
    assert row is not None
    return row


def _allocate(rig: AgentRig, pid: int, size: int) -> None:
    state = rig.node.state_dir
    write_row(state, GPU, size, kind="compute", pid=pid, born=start_time(pid))


async def test_a_pod_that_allocates_after_its_bind_is_seen_holding(rig: AgentRig) -> None:
    """Each Pod gets what is its own, from one look."""
    one, two = await rig.start_pod("one", memory="0"), await rig.start_pod("two", memory="0")
    await rig.binder.bind(rig.bind_request(one))
    await rig.binder.bind(rig.bind_request(two, "session-2"))
    _allocate(rig, rig.pids(one)[0], GIB)

    await rig.observer.observe()
    seen, unseen = await _row(rig), await _row(rig, "session-2")

    assert (seen.seen_holding, seen.gpu_uuids, seen.max_bytes) == (True, (GPU,), GIB)
    assert (unseen.seen_holding, unseen.gpu_uuids) == (False, ())


async def test_a_first_sight_on_a_device_that_was_given_is_noted(rig: AgentRig) -> None:
    """It stands in the row already, and a process without a size adds no bytes either."""
    pod = await rig.start_pod(memory="0")
    rig.give(pod, GPU)
    await rig.binder.bind(rig.bind_request(pod))
    given = await _row(rig)
    _allocate(rig, rig.pids(pod)[0], 0)

    await rig.observer.observe()

    assert (given.gpu_uuids, given.seen_holding) == ((GPU,), False)
    assert (await _row(rig)).seen_holding


async def test_the_most_bytes_ever_seen_are_kept(rig: AgentRig) -> None:
    """Less memory later does not unsee the most."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    for row in (rig.node.state_dir / "allocations").iterdir():
        row.unlink()
    _allocate(rig, rig.pids(pod)[0], GIB)

    await rig.observer.observe()

    assert (await _row(rig)).max_bytes == 6 * GIB


async def test_a_blind_look_notes_nothing_and_the_next_one_does(rig: AgentRig) -> None:
    """The loop outlives what it cannot see."""
    pod = await rig.start_pod(memory="0")
    await rig.binder.bind(rig.bind_request(pod))
    _allocate(rig, rig.pids(pod)[0], GIB)
    rig.node.inject("nvmlDeviceGetComputeRunningProcesses_v3", rc=999)
    await rig.observer.observe()
    blind = await _row(rig)
    rig.node.clear_faults()

    await rig.observer.observe()

    assert (blind.seen_holding, (await _row(rig)).seen_holding) == (False, True)


async def test_the_loop_goes_on_while_the_ledger_is_away(rig: AgentRig) -> None:
    """A full disk must not end the agent."""
    (rig.root / "ledger.sqlite").mkdir()

    running = asyncio.create_task(rig.observer.run())
    await asyncio.sleep(timedelta(milliseconds=100).total_seconds())
    lives = not running.done()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running

    assert lives
