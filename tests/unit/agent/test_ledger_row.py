"""A row as SQLite gives it, read back."""

from gpusession.agent.ledger_row import RowState, row_of
from gpusession.agent.processes import ProcessId


def test_a_fresh_row_has_no_report_and_no_bytes() -> None:
    """Nothing seen yet stays nothing, not zero."""
    row = row_of(
        {
            "session_uid": "s",
            "namespace": "default",
            "name": "session",
            "pod_name": "pod",
            "pod_uid": "p",
            "boot_id": "b",
            "state": "bound",
            "seen_holding": 0,
            "gpu_uuids": "[]",
            "max_bytes": 0,
            "baseline": "[[7, 70]]",
            "attempts": 0,
            "bytes_before": None,
            "processes_ended": 0,
            "report": None,
            "looked_after": 0,
        }
    )

    assert (row.session_uid, row.state, row.seen_holding) == ("s", RowState.BOUND, False)
    assert row.bytes_before is None
    assert row.report is None
    assert not row.looked_after
    assert row.baseline == {ProcessId(7, 70)}
