"""Draws the Sessions: as a table that changes in a terminal, as lines elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from tests.demo.follow import SessionFollower, phase_of

COLOURS = {
    "Pending": "yellow",
    "Active": "green",
    "PendingDestroy": "magenta",
    "Destroyed": "bright_black",
}

console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, record=True)
"""Where the demo speaks; what it says can be kept as a picture afterwards."""


def gibibytes(size: int) -> str:
    """Write bytes as people talk of GPU memory."""
    return f"{size / 2**30:.1f} GiB" if size else "0"


def live_table(follower: SessionFollower) -> Table:
    """Draw every Session as it stands."""
    table = Table(title="sessions.gpusession.dev", title_justify="left", expand=False)
    for column in ("Name", "Phase", "Reason", "Node", "GPU", "Verdict"):
        table.add_column(column)
    for session in follower.sessions():
        status = session.get("status", {})
        phase = phase_of(session)
        gone = " (gone)" if follower.is_gone(session["metadata"]["name"]) else ""
        table.add_row(
            session["metadata"]["name"],
            f"[{COLOURS.get(phase, 'white')}]{phase}{gone}[/]",
            status.get("reason", ""),
            status.get("nodeName", ""),
            " ".join(uuid[:12] for uuid in status.get("gpuUUIDs", [])),
            status.get("release", {}).get("verdict", ""),
        )
    return table


def show_until(
    done: Callable[[], bool], follower: SessionFollower, *, timeout: float, what: str
) -> None:
    """Show the table until `done`; raises TimeoutError with the last picture otherwise."""
    deadline = time.monotonic() + timeout
    seen: dict[str, str] = {}
    with Live(console=console, refresh_per_second=10, transient=True) as live:
        while not done():
            if time.monotonic() > deadline:
                console.print(live_table(follower))
                raise TimeoutError(f"{timeout:g} s passed while waiting for {what}")
            if console.is_terminal:
                live.update(live_table(follower))
            else:
                seen = _tell_changes(follower, seen)
            time.sleep(0.05)
    _tell_changes(follower, seen)
    console.print(live_table(follower))


def _tell_changes(follower: SessionFollower, seen: dict[str, str]) -> dict[str, str]:
    if console.is_terminal:
        return seen
    now = follower.phases()
    for name, phase in now.items():
        if phase and seen.get(name) != phase:
            console.print(f"  {name}: {phase}")
    return now


def evidence_table(rows: list[dict[str, Any]]) -> Table:
    """Draw what was proven of each Session that ended."""
    table = Table(title="evidence", title_justify="left")
    for column in ("Session", "Why", "Verdict", "Before", "After", "Keys", "Stages (ms)", "Writes"):
        table.add_column(column)
    for row in rows:
        stages = "  ".join(f"{s['name']} {s['milliseconds']:.0f}" for s in row["stages"])
        table.add_row(
            row["name"],
            row["reason"],
            row["verdict"],
            gibibytes(row["before"]),
            gibibytes(row["after"]),
            str(row["keys"]),
            stages,
            str(row["writes"]),
        )
    return table
