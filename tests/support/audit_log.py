"""Reads the apiserver's audit log: who wrote what, and what came of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MUTATING = frozenset({"create", "update", "patch", "delete", "deletecollection"})

POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
"""


class MutatingRequest(NamedTuple):
    """One finished write, refused ones too: look at the code."""

    user: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int


def events(audit_log: Path) -> Iterator[dict[str, Any]]:
    """Give every whole line of the log: each stage of each request, in order."""
    if not audit_log.exists():
        return
    with audit_log.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return  # the apiserver is writing it
            yield json.loads(line)


def mutating_requests(audit_log: Path) -> Iterator[MutatingRequest]:
    """Give the finished writes in the order of the log."""
    for event in events(audit_log):
        if event["stage"] == "ResponseComplete" and event["verb"] in MUTATING:
            yield _request(event)


def _request(event: dict[str, Any]) -> MutatingRequest:
    target = event.get("objectRef", {})
    return MutatingRequest(
        user=event["user"].get("username", ""),
        verb=event["verb"],
        resource=target.get("resource", ""),
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
    )
