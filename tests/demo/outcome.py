"""What both acts of the demo add up to: the last line, and everything that is amiss."""

import json
import statistics
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """What the last line reports, and everything that is not as it should be."""

    phases: dict[str, str] = field(default_factory=dict)
    evidence: list[dict[str, Any]] = field(default_factory=list)
    leaked_bytes: int = 0
    leaked_keys: int = 0
    leaked_processes: int = 0
    wrong_ends: list[str] = field(default_factory=list)
    missing_ends: list[str] = field(default_factory=list)
    returned: int = 0
    survived: int = 0
    outage_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Tell whether nothing is left, the right ones ended, and nothing else is wrong."""
        leaked = self.leaked_bytes or self.leaked_keys or self.leaked_processes
        return not (self.all_faults or leaked)

    @property
    def all_faults(self) -> list[str]:
        """Say everything that is not as it should be, in words."""
        wrong = [f"ended, and should not have: {one}" for one in self.wrong_ends]
        missing = [f"did not end, and should have: {one}" for one in self.missing_ends]
        return wrong + missing + self.faults

    def ended(self, reason: str) -> int:
        """Count the Sessions that ended for a reason, with evidence."""
        return sum(row["reason"] == reason for row in self.evidence)

    def line(self) -> str:
        """Give the JSON of the last line."""
        totals = [sum(s["milliseconds"] for s in row["stages"]) for row in self.evidence]
        phases = list(self.phases.values())
        return json.dumps(
            {
                "sessions": len(phases),
                "destroyed": phases.count("Destroyed"),
                "active": phases.count("Active"),
                "pending": phases.count("Pending"),
                "leaked_bytes": self.leaked_bytes,
                "leaked_keys": self.leaked_keys,
                "leaked_processes": self.leaked_processes,
                "release_p50_ms": round(statistics.median(totals), 1) if totals else None,
                "release_max_ms": round(max(totals), 1) if totals else None,
                "wrong_ends": len(self.wrong_ends),
                "missing_ends": len(self.missing_ends),
                "disconnected_ended": self.ended("Disconnected"),
                "silent_ended": self.ended("HeartbeatLost"),
                "idle_ended": self.ended("Idle"),
                "returned": self.returned,
                "outage_seconds": round(self.outage_seconds, 1),
                "survived_outage": self.survived,
            }
        )
