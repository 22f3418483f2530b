"""The arithmetic of the benchmarks, without any of their time."""

import json
from pathlib import Path

import pytest
from tests.bench import figures
from tests.bench.figures import Ends, NotMeasuredError, Round, Usage


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)], ids=str
)
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: int) -> None:
    """Of 1 to 100 the p99 is 99, in whatever order they came."""
    assert figures.percentile([*range(100, 0, -1)], share) == expected


def test_a_percentile_of_few_does_not_flatter() -> None:
    """The p99 of three values is the worst of them."""
    assert figures.percentile([0.1, 9.0, 0.2], 0.99) == 9.0


def test_nothing_measured_is_no_figure() -> None:
    """Without a value there is an error, and no zero."""
    with pytest.raises(NotMeasuredError):
        figures.percentile([], 0.5)


@pytest.mark.parametrize("broken", [(0, 1, 1), (5, 0, 1), (5, 1, 0)], ids=str)
def test_a_round_in_which_nothing_happened_is_no_figure(broken: tuple[int, int, int]) -> None:
    """No beats, no CPU or no time would divide into nonsense."""
    with pytest.raises(NotMeasuredError):
        Usage(*broken)


def _round(floor: int, gateway: int) -> Round:
    return Round(
        floor=Usage(floor, cpu_seconds=2, wall_seconds=4),
        blocking=Usage(2 * floor, cpu_seconds=2, wall_seconds=4),
        gateway=Usage(gateway, cpu_seconds=2, wall_seconds=4),
    )


def test_heartbeats_are_by_cpu_and_ratios_by_round() -> None:
    """The median of ratios is no ratio of medians: a round has the same neighbours."""
    figure = figures.heartbeats([_round(100, 50), _round(400, 80), _round(200, 160)])

    assert figure["per_core_per_second"] == 40
    assert figure["floor_per_second"] == 100
    assert figure["ratio_median"] == 0.5
    assert figure["ratio_to_blocking_median"] == 0.25
    assert figure["spread"]["ratio"] == {"median": 0.5, "least": 0.2, "most": 0.8}
    assert figure["spread"]["per_wall_second"]["median"] == 20
    assert len(figure["rounds"]) == 3


def test_an_expiry_row_counts_every_end_of_all_rounds() -> None:
    """A bad round is not averaged away."""
    good = Ends([0.1] * 50, claimed=[0.04] * 50, bare=[0.05] * 50)
    bad = Ends([0.2] * 49 + [3.0], claimed=[0.04] * 50, bare=[0.05] * 50)

    row = figures.expiry_row(1000, [good, bad], rate=50)

    assert (row["records"], row["due_per_second"], row["ends"]) == (1000, 50, 100)
    assert (row["p50_s"], row["p99_s"], row["max_s"]) == (0.1, 0.2, 3.0)
    assert row["p99_by_round_s"] == [0.1, 3.0]
    assert (row["claimed_p50_s"], row["bare_p99_s"]) == (0.04, 0.05)


def test_a_figure_is_left_as_json(tmp_path: Path) -> None:
    """Whoever reads the file gets what the table was made of."""
    path = figures.write("expiry", {"rows": []}, folder=tmp_path / "bench")

    assert json.loads(path.read_text()) == {"rows": []}
