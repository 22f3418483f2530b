"""What the ledger knows of one Session, and how it reads it back from SQLite."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from gpusession.agent.processes import ProcessId
from gpusession.api.release import ReleaseReport


class RowState(StrEnum):
    """How far a Session has come on this node; a done one no longer has its Pod."""

    BOUND = "bound"
    RELEASING = "releasing"
    DONE = "done"


class Claim(NamedTuple):
    """Which Session has which Pod, and since which boot of the node."""

    session_uid: str
    namespace: str
    name: str
    pod_name: str
    pod_uid: str
    boot_id: str


class Known(NamedTuple):
    """On which devices a Session has to be verified, and whether it was seen holding any."""

    gpu_uuids: Collection[str]
    seen_holding: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One Session in the ledger."""

    claim: Claim
    state: RowState
    seen_holding: bool
    gpu_uuids: tuple[str, ...]
    """Given to the Pod by kubelet, or seen by NVML: a release has to look at all of them."""
    max_bytes: int
    baseline: frozenset[ProcessId]
    """Processes of no Pod that were on this node's GPUs before the Session."""
    attempts: int
    bytes_before: int | None
    processes_ended: int
    report: ReleaseReport | None
    """The last one; it stands for good once the row is done."""
    looked_after: bool
    """Done, and kubelet may yet start something in the Pod that has no business there."""

    @property
    def session_uid(self) -> str:
        """The key of the row."""
        return self.claim.session_uid


def row_of(found: Mapping[str, Any]) -> Row:
    """Read a row of the table."""
    encoded = found["report"]
    return Row(
        claim=Claim(*(found[name] for name in Claim._fields)),
        state=RowState(found["state"]),
        seen_holding=bool(found["seen_holding"]),
        gpu_uuids=tuple(json.loads(found["gpu_uuids"])),
        max_bytes=found["max_bytes"],
        baseline=frozenset(ProcessId(*pair) for pair in json.loads(found["baseline"])),
        attempts=found["attempts"],
        bytes_before=found["bytes_before"],
        processes_ended=found["processes_ended"],
        report=None if encoded is None else msgspec.json.decode(encoded, type=ReleaseReport),
        looked_after=bool(found["looked_after"]),
    )
