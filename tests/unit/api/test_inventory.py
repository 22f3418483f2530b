"""The inventory's words on the wire."""

import msgspec

from gpusession.api.inventory import ContextReport


def test_names_are_those_of_kubernetes() -> None:
    """UID and UUIDs are written as everywhere else in the API."""
    report = ContextReport(
        session_uid="s",
        session_namespace="n",
        session_name="a",
        pod_name="p",
        pod_uid="u",
        state="bound",
        seen_holding=True,
    )

    fields = msgspec.to_builtins(report)

    assert {"sessionUID", "podUID", "gpuUUIDs", "seenHolding"} <= set(fields)
