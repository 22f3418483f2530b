"""What counts as a write in the apiserver's audit log."""

import json
from pathlib import Path

from tests.support.audit_log import MutatingRequest, mutating_requests


def event(verb: str, stage: str = "ResponseComplete") -> str:
    """Give a line as the apiserver writes it."""
    target = {"resource": "pods", "subresource": "status", "namespace": "lab", "name": "chat"}
    body = {"stage": stage, "verb": verb, "user": {"username": "ada"}, "objectRef": target}
    return json.dumps(body | {"responseStatus": {"code": 200}}) + "\n"


def test_finished_writes_count_and_reads_do_not(tmp_path: Path) -> None:
    """Reads and unfinished stages are passed over."""
    log = tmp_path / "audit.log"
    log.write_text(event("get") + event("patch", "Panic") + event("patch"), encoding="utf-8")

    requests = list(mutating_requests(log))

    assert requests == [MutatingRequest("ada", "patch", "pods", "status", "lab", "chat", 200)]


def test_half_written_line_waits(tmp_path: Path) -> None:
    """The line that the apiserver is writing at this moment is left for the next look."""
    log = tmp_path / "audit.log"
    log.write_text(event("create") + event("delete")[:40], encoding="utf-8")

    assert [request.verb for request in mutating_requests(log)] == ["create"]


def test_missing_log_holds_no_requests(tmp_path: Path) -> None:
    """Before the first request there is no file, and that is no error."""
    assert list(mutating_requests(tmp_path / "audit.log")) == []
