"""The Pod's consent to its end, read from the apiserver when it matters."""

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

    word = await PodCheck(rig.reader, node_name=NODE).ask(rig.order(pod), within=WITHIN)
    assert word.consent is consent


@pytest.mark.parametrize(
    ("change", "may_restart"),
    [
        (lambda _: None, True),
        (lambda pod: pod["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"), False),
        (lambda pod: pod["spec"].update(restartPolicy="Never"), False),
        (lambda pod: pod["status"].update(phase="Failed"), False),
        (lambda pod: pod["metadata"].update(uid="another"), False),
        (lambda pod: pod["spec"].update(nodeName="node-b"), True),
    ],
    ids=["running", "terminating", "never", "ended", "replaced", "elsewhere"],
)
async def test_only_what_kubelet_cannot_start_again_needs_no_second_look_later(
    rig: AgentRig, change: Callable[[dict[str, object]], object], may_restart: object
) -> None:
    """Terminating, ended or replaced Pods, and those of restartPolicy Never."""
    pod = await rig.start_pod(memory="0")
    change(rig.apiserver.pods["default", pod.name])

    word = await PodCheck(rig.reader, node_name=NODE).ask(rig.order(pod), within=WITHIN)

    assert word.may_restart is may_restart


async def test_a_silent_apiserver_is_no_answer(rig: AgentRig) -> None:
    """The release goes on with what the order and the ledger say."""
    pod = await rig.start_pod(memory="0")
    rig.apiserver.is_down = True

    word = await PodCheck(rig.reader, node_name=NODE).ask(rig.order(pod), within=WITHIN)

    assert (word.consent, word.may_restart) == (Consent.SILENT, True)
