"""What counts as proof, where a table of the lifecycle would not show the edge."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.support.builders import (
    INTENT,
    NOW,
    make_metadata,
    make_node,
    make_observation,
    make_pod,
    make_session,
    make_status,
)

from gpusession.api.cluster import OUT_OF_SERVICE_TAINT
from gpusession.api.release import Mode
from gpusession.api.session import Phase
from gpusession.rules.actions import Intent
from gpusession.rules.evidence import (
    node_is_gone,
    recorded_intent,
    recorded_node,
    release_mode,
    wanted_intent,
)
from gpusession.rules.observation import ABSENT

ACTIVE = make_session(Phase.ACTIVE)
GRACE = timedelta(seconds=30)


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (make_pod(), INTENT),
        (make_pod(phase="Pending"), INTENT),
        (make_pod(node=None), None),
        (make_pod(use=None), None),
        (make_pod(use="shared"), None),
        (ABSENT, None),
    ],
    ids=["running", "scheduled", "no node", "no label", "shared", "absent"],
)
def test_intent_needs_consent_and_a_node(pod: Any, expected: Intent | None) -> None:
    """A Pod that is scheduled may be named before it runs; nothing else may."""
    assert wanted_intent(make_observation(ACTIVE, pod=pod)) == expected


def test_status_is_believed_before_the_annotation() -> None:
    """What was bound counts more than what was meant to be."""
    session = make_session(Phase.ACTIVE, metadata=make_metadata(intent=Intent("node-b", "p-2")))

    assert recorded_intent(session.status, make_observation(session)) == INTENT
    assert recorded_node(session) == "node-a"


def test_node_of_the_annotation_is_looked_at_while_nothing_is_bound() -> None:
    """A bind may have begun there."""
    assert recorded_node(make_session(Phase.PENDING)) == "node-a"
    assert recorded_node(make_session()) is None


def test_absent_node_is_no_evidence_for_a_session_without_one() -> None:
    """Only the recorded Node can be gone."""
    session = make_session(Phase.PENDING)

    assert not node_is_gone(session.status, make_observation(session, node=ABSENT))


def test_node_without_a_recorded_uid_cannot_be_called_replaced() -> None:
    """A new uid means nothing where the old one is not known; a taint still does."""
    status = msgspec.structs.replace(make_status(Phase.ACTIVE), node_uid=None)
    tainted = make_node("n-2", taints=(OUT_OF_SERVICE_TAINT,))

    assert not node_is_gone(status, make_observation(ACTIVE, node=make_node("n-2")))
    assert node_is_gone(status, make_observation(ACTIVE, node=tainted))


@pytest.mark.parametrize(
    ("left", "expected"),
    [(timedelta(seconds=1), Mode.VERIFY), (timedelta(), Mode.END), (-GRACE, Mode.END)],
    ids=["runs", "at its end", "over"],
)
def test_foreign_grace_is_respected_to_its_end_and_no_longer(
    left: timedelta, expected: Mode
) -> None:
    """DeletionTimestamp is when the grace ends, not when it was asked for."""
    pod = make_pod(ends=NOW + left, grace=GRACE)

    assert release_mode(ACTIVE.status, make_observation(ACTIVE, pod=pod), now=NOW) is expected
