"""Releases on a GPU that uses memory for which NVML lists no process."""

from tests.support.agent_rig import GIB, GPU, AgentRig
from tests.support.nvml_simulator import hold, release_hold

from gpusession.api.release import Verdict


async def test_memory_without_a_listed_process_is_held_until_it_goes(rig: AgentRig) -> None:
    """The Pod's processes are gone from the lists, its bytes are not: Held, then Freed."""
    await rig.observer.observe()
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    row = hold(rig.node.state_dir, GPU, GIB)
    row.write_text(row.read_text().rsplit(" ", 1)[0] + " 1\n")  # of another pid namespace

    held = await rig.releaser.release(rig.order(pod))
    release_hold(row)
    freed = await rig.releaser.release(rig.order(pod))

    assert held.verdict is Verdict.HELD
    assert f"{GIB} bytes in use that no process is listed for" in held.message
    assert (freed.verdict, freed.attempts) == (Verdict.FREED, 2)
