"""An intent is read back exactly as it was written, or not at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusession.rules.actions import Intent

NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?", fullmatch=True)


@settings(max_examples=50, derandomize=True, database=None, deadline=None)
@given(node=NAMES, pod_uid=st.uuids().map(str))
def test_intent_survives_the_annotation(node: str, pod_uid: str) -> None:
    """Node names have no slash, so the first one divides."""
    intent = Intent(node, pod_uid)

    assert Intent.parse(str(intent)) == intent


@pytest.mark.parametrize("text", [None, "", "/", "node-a", "node-a/", "/p-1"], ids=repr)
def test_unreadable_annotation_is_no_intent(text: str | None) -> None:
    """Half an intent names no bind."""
    assert Intent.parse(text) is None
