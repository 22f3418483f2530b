"""Draws the Sessions: as a table that changes in a terminal, as lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from tests.demo.follow import SessionFollower, phase_of
from tests.support.processes import Process, ProcessFailedError

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


class Screen:
    """Shows the Sessions of one follower, and what each client does if `doing` is given.

    `programs` are those without which nothing that is waited for could come.
    """

    def __init__(
        self,
        follower: SessionFollower,
        programs: Iterable[Process],
        *,
        doing: Mapping[str, str] | None = None,
    ) -> None:
        self._follower = follower
        self._programs = tuple(programs)
        self._doing = doing
        self._told: dict[str, str] = {}

    def show_until(self, done: Callable[[], bool], *, timeout: float, what: str) -> None:
        """Show the table until `done`; draws it once more before it gives up.

        Raises TimeoutError when the time is up, ProcessFailedError when a program has ended.
        """
        deadline = time.monotonic() + timeout
        with Live(console=console, refresh_per_second=10, transient=True) as live:
            while not done():
                ended = [p.log.stem for p in self._programs if not p.running]
                if self._follower.has_ended:
                    ended.append("kubectl get --watch")
                if ended:
                    console.print(self._table())
                    raise ProcessFailedError(f"{', '.join(ended)} ended; waiting for {what}")
                if time.monotonic() > deadline:
                    console.print(self._table())
                    raise TimeoutError(f"{timeout:g} s passed while waiting for {what}")
                if console.is_terminal:
                    live.update(self._table())
                else:
                    self._tell_changes()
                time.sleep(0.05)
        self._tell_changes()

    def show(self) -> None:
        """Show the table as it is now, to stay."""
        console.print(self._table())

    def _tell_changes(self) -> None:
        if console.is_terminal:
            return
        now = self._follower.phases()
        for name, phase in now.items():
            if phase and self._told.get(name) != phase:
                console.print(f"  {name}: {phase}")
        self._told = now

    def _table(self) -> Table:
        table = Table(title="sessions.gpusession.dev", title_justify="left", expand=False)
        told = ("Node", "GPU") if self._doing is None else ("What its client does",)
        for column in ("Name", "Phase", "Reason", *told, "Verdict"):
            table.add_column(column)
        for session in self._follower.sessions():
            table.add_row(*self._cells(session))
        return table

    def _cells(self, session: dict[str, Any]) -> list[str]:
        name, status = session["metadata"]["name"], session.get("status", {})
        phase = phase_of(session)
        gone = " (gone)" if self._follower.is_gone(name) else ""
        told = [
            status.get("nodeName", ""),
            " ".join(uuid[:12] for uuid in status.get("gpuUUIDs", [])),
        ]
        if self._doing is not None:
            told = [self._doing.get(name, "")]
        return [
            name,
            f"[{COLOURS.get(phase, 'white')}]{phase}{gone}[/]",
            status.get("reason", ""),
            *told,
            status.get("release", {}).get("verdict", ""),
        ]


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
