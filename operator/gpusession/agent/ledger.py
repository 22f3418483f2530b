"""The node's memory of Sessions: who has which Pod, and how each release ended.

SQLite in WAL mode, every commit on disk before it counts: the agent may be killed at any
point and goes on from here. It arbitrates that a Pod has one living Session. The only
importer of sqlite3; all calls run in one thread.
"""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import msgspec

from gpusession.agent.ledger_row import Claim, Known, Row, RowState, row_of
from gpusession.agent.processes import ProcessId
from gpusession.api.release import ReleaseReport
from gpusession.errors import Retry

T = TypeVar("T")

KEEP_DONE = timedelta(days=7)
"""A done row answers repeats; a controller that was away for a week is away for good."""

_LOCK_TIMEOUT = 2.0
"""Seconds to wait for another process at the file: at most a predecessor that just exits."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    session_uid TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    pod_name TEXT NOT NULL,
    pod_uid TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    state TEXT NOT NULL,
    seen_holding INTEGER NOT NULL DEFAULT 0,
    gpu_uuids TEXT NOT NULL DEFAULT '[]',
    max_bytes INTEGER NOT NULL DEFAULT 0,
    baseline TEXT NOT NULL DEFAULT '[]',
    attempts INTEGER NOT NULL DEFAULT 0,
    bytes_before INTEGER,
    processes_ended INTEGER NOT NULL DEFAULT 0,
    report BLOB,
    changed_at REAL NOT NULL,
    looked_after INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_living_session_per_pod
    ON sessions (pod_uid) WHERE state != 'done';
CREATE TABLE IF NOT EXISTS fence (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    leader_epoch INTEGER NOT NULL
) STRICT;
"""

_LATER_COLUMNS = {"looked_after": "INTEGER NOT NULL DEFAULT 0"}
"""Which a file of an earlier version lacks."""


class Ledger:
    """Rows of Sessions, one by uid. Every method may raise Retry: the file gave no answer.

    The file is opened by the first call that needs it, and again after a failure.
    """

    def __init__(self, file: Path, *, now: Callable[[], float]) -> None:
        self._file = file
        self._now = now
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    async def close(self) -> None:
        """Close the file after what is queued."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._forget_connection)
        self._thread.shutdown(wait=False)

    async def check(self) -> bool:
        """Tell whether nobody has filled the file since it was made; Retry if unreadable."""
        return await self._run(
            lambda db: not db.execute("PRAGMA user_version").fetchone()["user_version"]
        )

    async def fill(self, found: Mapping[Claim, Known]) -> None:
        """Take in what the Sessions tell of this node, and with it end the file's freshness."""
        await self._run(lambda db: _fill(db, found, self._now()))

    async def fence(self, leader_epoch: int) -> int:
        """Remember the highest leader epoch and return it; a caller below it is refused."""
        return await self._run(lambda db: _fence(db, leader_epoch))

    async def find(self, session_uid: str) -> Row | None:
        """Give the Session's row."""
        rows = await self._rows("WHERE session_uid = ?", (session_uid,))
        return rows[0] if rows else None

    async def living_of_pod(self, pod_uid: str) -> str | None:
        """Tell which Session has the Pod and is not done with it."""
        rows = await self._rows("WHERE pod_uid = ? AND state != 'done'", (pod_uid,))
        return rows[0].session_uid if rows else None

    async def rows(self) -> list[Row]:
        """Give all rows."""
        return await self._rows("")

    async def bind(
        self, claim: Claim, *, baseline: Iterable[ProcessId], assigned: Collection[str] = ()
    ) -> bool:
        """Give the Pod to the Session; False where another living Session has it.

        A repeat keeps what is known, takes the present boot id and adds the devices that
        are assigned, which nobody has seen held by that. A claim of another Pod replaces
        one that is done. The unique index decides between two claims at once.
        """
        known = Known(assigned, seen_holding=False)
        return await self._run(lambda db: _bind(db, claim, list(baseline), known, now=self._now()))

    async def sight(self, sightings: Mapping[str, tuple[Collection[str], int]]) -> None:
        """Note on which GPUs each living Session was seen holding, and how many bytes."""
        await self._run(lambda db: _sight(db, sightings))

    async def begin(
        self, session_uid: str, known: Known, *, bytes_before: int | None
    ) -> Row | None:
        """Write down that a release starts, and what was held, before anything is signalled.

        The first bytes_before of all attempts stays; where the Pod's processes are gone by
        now, it is the most that was seen while bound. None where there is no row, or where
        another Session has taken the Pod since this one was done.
        """
        now = self._now()
        return await self._run(lambda db: _begin(db, session_uid, known, bytes_before, now=now))

    async def settle(
        self, claim: Claim, report: ReleaseReport, *, done: bool, looked_after: bool = False
    ) -> None:
        """Keep how a release ended; done closes the row for good, or makes a closed one.

        `looked_after` says that the Pod is to be watched for a while, also by a later agent.
        """
        state, now = RowState.DONE if done else RowState.RELEASING, self._now()
        await self._run(
            lambda db: _settle(db, claim, report, state=state, looked_after=looked_after, now=now)
        )

    async def prune(self) -> None:
        """Forget rows that have been done for longer than KEEP_DONE."""
        before = self._now() - KEEP_DONE.total_seconds()
        query = "DELETE FROM sessions WHERE state = 'done' AND changed_at < ?"
        await self._run(lambda db: db.execute(query, (before,)))

    async def _rows(self, where: str, values: tuple[str, ...] = ()) -> list[Row]:
        query = f"SELECT * FROM sessions {where}"  # noqa: S608 - where is one of the constants above
        return await self._run(lambda db: [row_of(found) for found in db.execute(query, values)])

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._transact, work)
        except (sqlite3.Error, OSError) as error:
            raise Retry(f"the ledger {self._file} gives no answer: {error}") from error

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = _open(self._file)
        try:
            with self._connection:
                return work(self._connection)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error:
            self._forget_connection()
            raise

    def _forget_connection(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


def _open(file: Path) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(file, timeout=_LOCK_TIMEOUT, isolation_level="IMMEDIATE")
    try:
        connection.row_factory = sqlite3.Row
        # One agent at a time: what is in flight is known to its own process only.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
        _add_columns(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _add_columns(db: sqlite3.Connection) -> None:
    known = {row["name"] for row in db.execute("PRAGMA table_info(sessions)")}
    for name, kind in _LATER_COLUMNS.items():
        if name not in known:
            db.execute(f"ALTER TABLE sessions ADD COLUMN {name} {kind}")


def _fence(db: sqlite3.Connection, leader_epoch: int) -> int:
    known = db.execute("SELECT leader_epoch FROM fence").fetchone()
    if known is not None and leader_epoch <= known["leader_epoch"]:
        return int(known["leader_epoch"])
    db.execute("INSERT OR REPLACE INTO fence VALUES (1, ?)", (leader_epoch,))
    return leader_epoch


def _bind(
    db: sqlite3.Connection, claim: Claim, baseline: list[ProcessId], known: Known, *, now: float
) -> bool:
    db.execute(
        "DELETE FROM sessions WHERE session_uid = ? AND pod_uid != ? AND state = 'done'",
        (claim.session_uid, claim.pod_uid),
    )
    try:
        db.execute(
            "INSERT INTO sessions (session_uid, namespace, name, pod_name, pod_uid, boot_id,"
            " state, baseline, changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (session_uid) DO UPDATE SET boot_id = excluded.boot_id"
            " WHERE state != 'done'",
            (*claim, RowState.BOUND, json.dumps(sorted(baseline)), now),
        )
    except sqlite3.IntegrityError:
        return False
    _note(db, claim.session_uid, known)
    return True


def _fill(db: sqlite3.Connection, found: Mapping[Claim, Known], now: float) -> None:
    for claim, known in found.items():
        _bind(db, claim, [], known, now=now)
    db.execute("PRAGMA user_version = 1")


def _sight(db: sqlite3.Connection, sightings: Mapping[str, tuple[Collection[str], int]]) -> None:
    for session_uid, (gpu_uuids, held) in sightings.items():
        if gpu_uuids:
            _note(db, session_uid, Known(gpu_uuids, seen_holding=True), held)


def _note(db: sqlite3.Connection, session_uid: str, known: Known, held: int = 0) -> None:
    """Add to what a living row knows; nothing that is known is forgotten."""
    row = db.execute(
        "SELECT gpu_uuids FROM sessions WHERE session_uid = ? AND state != 'done'", (session_uid,)
    ).fetchone()
    if row is None:
        return
    merged = sorted({*json.loads(row["gpu_uuids"]), *known.gpu_uuids})
    db.execute(
        "UPDATE sessions SET seen_holding = max(seen_holding, ?), gpu_uuids = ?,"
        " max_bytes = max(max_bytes, ?) WHERE session_uid = ?",
        (known.seen_holding, json.dumps(merged), held, session_uid),
    )


def _begin(
    db: sqlite3.Connection,
    session_uid: str,
    known: Known,
    bytes_before: int | None,
    *,
    now: float,
) -> Row | None:
    try:
        db.execute(
            "UPDATE sessions SET state = ?, attempts = attempts + 1, changed_at = ?,"
            " bytes_before = coalesce(bytes_before, nullif(?, 0), nullif(max_bytes, 0), ?)"
            " WHERE session_uid = ?",
            (RowState.RELEASING, now, bytes_before, bytes_before, session_uid),
        )
    except sqlite3.IntegrityError:
        return None
    _note(db, session_uid, known, bytes_before or 0)
    found = db.execute("SELECT * FROM sessions WHERE session_uid = ?", (session_uid,)).fetchone()
    return None if found is None else row_of(found)


def _settle(
    db: sqlite3.Connection,
    claim: Claim,
    report: ReleaseReport,
    *,
    state: RowState,
    looked_after: bool,
    now: float,
) -> None:
    _note(db, claim.session_uid, Known(report.gpu_uuids, report.seen_holding))
    db.execute(
        "INSERT INTO sessions (session_uid, namespace, name, pod_name, pod_uid, boot_id, state,"
        " looked_after, changed_at, report, processes_ended, attempts)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (session_uid) DO UPDATE SET state = excluded.state,"
        " looked_after = excluded.looked_after, changed_at = excluded.changed_at,"
        " report = excluded.report, processes_ended = excluded.processes_ended",
        (
            *(*claim, state, looked_after, now),
            *(msgspec.json.encode(report), report.processes_ended, report.attempts),
        ),
    )
