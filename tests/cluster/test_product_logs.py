"""The log that a story fails on: containerd's files, from the first line to the last."""

import json
from pathlib import Path

import pytest
from tests.cluster.product_logs import ProductLogs, is_fault


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"level": "error", "event": "a write was refused"}),
        json.dumps({"level": "critical", "event": "the end"}),
        json.dumps({"level": "warning", "event": "odd", "exception": "Traceback ..."}),
        "Traceback (most recent call last):",
    ],
)
def test_errors_and_tracebacks_are_faults(line: str) -> None:
    """Whoever operates this would look at such a line."""
    assert is_fault(line)


@pytest.mark.parametrize("level", ["debug", "info", "warning"])
def test_what_may_happen_is_no_fault(level: str) -> None:
    """A warning tells of what was foreseen, such as a neighbour who is away."""
    assert not is_fault(json.dumps({"level": level, "event": "lease not written"}))


def test_a_log_is_read_once_and_also_when_its_pod_is_gone(tmp_path: Path) -> None:
    """What kubelet removes was opened before; half a line waits for its other half."""
    folder = tmp_path / "log" / "pods" / "gpusession-system_gpusession-controller-1_uid" / "main"
    folder.mkdir(parents=True)
    path = folder / "0.log"
    with ProductLogs([tmp_path]) as logs, path.open("w", encoding="utf-8") as written:
        written.write('2026-01-01T00:00:00Z stderr F {"level": "info"}\n')
        written.write('2026-01-01T00:00:01Z stderr P {"level": "err\n')
        written.flush()
        assert logs.faults() == []
        path.unlink()
        written.write('2026-01-01T00:00:01Z stderr F or"}\n2026-01-01T00:00:02Z std')
        written.flush()

        assert logs.faults() == ['gpusession-controller-1/main, life 0: {"level": "error"}']
        written.write('err F {"level": "critical"}\n')
        written.flush()
        assert logs.faults() == ['gpusession-controller-1/main, life 0: {"level": "critical"}']
        assert logs.faults() == []
