"""The Pod's consent to its end, read from the apiserver when it matters."""

import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from tests.support.agent_rig import NODE, AgentRig

from gpusession.agent.pod_check import Consent, PodCheck

WITHIN = timedelta(milliseconds=500)


@pytest.mark.parametrize(
    ("change", "consent"),
    [
        (lambda _: None, Consent.GIVEN),
        (lambda pod: pod["metadata"].update(labels={}), Consent.WITHDRAWN),
        (
            lambda pod: pod["metadata"].update(labels={"gpusession.dev/use": "shared"}),
            Consent.WITHDRAWN,
        ),
        (lambda pod: pod["metadata"].update(uid="another"), Consent.ABSENT),
        (lambda pod: pod["spec"].update(nodeName="node-b"), Consent.ABSENT),
    ],
    ids=lambda value: value.name if isinstance(value, Consent) else "",
)
async def test_consent(
    rig: AgentRig, change: Callable[[dict[str, object]], object], consent: Consent
) -> None:
    """The label on this very Pod, on this node, and nothing else is consent."""
    pod = await rig.start_pod(memory="0")
    change(rig.apiserver.pods["default", pod.name])

    order = rig.order(pod)
    assert await PodCheck(rig.reader, node_name=NODE).consent(order, within=WITHIN) is consent


async def test_a_silent_apiserver_costs_no_time(rig: AgentRig) -> None:
    """The release goes on with what the order and the ledger say."""
    pod = await rig.start_pod(memory="0")
    rig.apiserver.is_down = True
    began_at = time.monotonic()

    consent = await PodCheck(rig.reader, node_name=NODE).consent(rig.order(pod), within=WITHIN)

    assert consent is Consent.SILENT
    assert time.monotonic() - began_at < WITHIN.total_seconds()
