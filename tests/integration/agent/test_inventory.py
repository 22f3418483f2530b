"""What the agent tells of its node when nobody can look."""

import pytest
from tests.support.agent_rig import AgentRig

from gpusession.agent.inventory import Inventory
from gpusession.errors import Retry


async def test_a_blind_inventory_has_no_answer(rig: AgentRig) -> None:
    """An empty list would look like a node without GPUs."""
    rig.node.inject("*", rc=999)

    with pytest.raises(Retry, match="NVML"):
        await Inventory(nvml=rig.nvml, ledger=rig.ledger).gpus()


async def test_contexts_need_no_gpu(rig: AgentRig) -> None:
    """The ledger tells what it knows while NVML is away."""
    pod = await rig.start_pod(memory="0")
    await rig.binder.bind(rig.bind_request(pod))
    rig.node.inject("*", rc=999)

    answer = await Inventory(nvml=rig.nvml, ledger=rig.ledger).contexts()

    assert [context.pod_uid for context in answer.contexts] == [pod.uid]
