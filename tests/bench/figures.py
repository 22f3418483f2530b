"""The arithmetic of a benchmark, and the file that it leaves; it measures nothing itself."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.toolchain import REPOSITORY

RESULTS = REPOSITORY / "dist" / "bench"


class NotMeasuredError(RuntimeError):
    """The benchmark has no figure to give; a bad figure is none of these."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one round did, and what it cost the process that is measured."""

    beats: int
    cpu_seconds: float
    wall_seconds: float

    def __post_init__(self) -> None:
        if min(self.beats, self.cpu_seconds, self.wall_seconds) <= 0:
            raise NotMeasuredError(f"nothing was done, or in no time: {self}")

    @property
    def per_core_second(self) -> float:
        """Beats for each second of the process' own CPU."""
        return self.beats / self.cpu_seconds

    @property
    def per_second(self) -> float:
        """Beats for each second of the clock, neighbours' load and all."""
        return self.beats / self.wall_seconds


def percentile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that at least this share of all does not exceed."""
    if not values:
        raise NotMeasuredError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Give the median with the least and the most: one number alone hides the noise."""
    if not values:
        raise NotMeasuredError("no values")
    middle = statistics.median(values)
    found = {"median": middle, "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What was measured turn and turn about, so that all of it had the same neighbours."""

    floor: Usage
    blocking: Usage
    """The floor of a client that serves nobody else, and so needs no event loop."""
    gateway: Usage

    @property
    def ratio(self) -> float:
        """The gateway over its floor, by CPU."""
        return self.gateway.per_core_second / self.floor.per_core_second

    @property
    def ratio_to_blocking(self) -> float:
        """The gateway over the best that redis-py can do."""
        return self.gateway.per_core_second / self.blocking.per_core_second


def heartbeats(rounds: Sequence[Round]) -> dict[str, Any]:
    """Sum up; each ratio is of neighbours in time."""
    spreads = {
        "per_core": spread([one.gateway.per_core_second for one in rounds], 0),
        "per_wall_second": spread([one.gateway.per_second for one in rounds], 0),
        "floor": spread([one.floor.per_core_second for one in rounds], 0),
        "floor_blocking": spread([one.blocking.per_core_second for one in rounds], 0),
        "ratio": spread([one.ratio for one in rounds], 3),
        "ratio_to_blocking": spread([one.ratio_to_blocking for one in rounds], 3),
    }
    return {
        "per_core_per_second": spreads["per_core"]["median"],
        "floor_per_second": spreads["floor"]["median"],
        "ratio_median": spreads["ratio"]["median"],
        "floor_blocking_per_second": spreads["floor_blocking"]["median"],
        "ratio_to_blocking_median": spreads["ratio_to_blocking"]["median"],
        "spread": spreads,
        "rounds": [
            {
                "floor": round(one.floor.per_core_second),
                "floor_blocking": round(one.blocking.per_core_second),
                "gateway": round(one.gateway.per_core_second),
                "gateway_per_wall_second": round(one.gateway.per_second),
                "gateway_cores": round(one.gateway.cpu_seconds / one.gateway.wall_seconds, 2),
                "ratio": round(one.ratio, 3),
                "ratio_to_blocking": round(one.ratio_to_blocking, 3),
            }
            for one in rounds
        ],
    }


@dataclass(frozen=True, slots=True)
class Ends:
    """How late, in seconds, the ends of one round were, and bare writes beside them."""

    written: Sequence[float]
    claimed: Sequence[float]
    bare: Sequence[float]


def expiry_row(records: int, rounds: Sequence[Ends], *, rate: float) -> dict[str, Any]:
    """Sum up the ends among so many records, all rounds together."""
    written = [late for one in rounds for late in one.written]
    claimed = [late for one in rounds for late in one.claimed]
    bare = [late for one in rounds for late in one.bare]
    return {
        "records": records,
        "due_per_second": rate,
        "p50_s": round(percentile(written, 0.5), 3),
        "p99_s": round(percentile(written, 0.99), 3),
        "max_s": round(max(written), 3),
        "ends": len(written),
        "p99_by_round_s": [round(percentile(one.written, 0.99), 3) for one in rounds],
        "claimed_p50_s": round(percentile(claimed, 0.5), 3),
        "claimed_p99_s": round(percentile(claimed, 0.99), 3),
        "bare_p50_s": round(percentile(bare, 0.5), 3),
        "bare_p99_s": round(percentile(bare, 0.99), 3),
    }


def write(name: str, figure: Mapping[str, Any], *, folder: Path = RESULTS) -> Path:
    """Leave a figure as JSON and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(figure, indent=2) + "\n", encoding="utf-8")
    return path
