"""The ledger in a real SQLite file: what it promises survives everything."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.support.toolchain import REPOSITORY

from gpusession.agent.ledger import KEEP_DONE, Ledger
from gpusession.agent.ledger_row import Claim, Known, RowState
from gpusession.agent.processes import ProcessId
from gpusession.api.release import ReleaseReport, StateReport, Verdict
from gpusession.api.session import Reason
from gpusession.errors import Retry

CLAIM = Claim("session-1", "default", "session", "pod", "pod-uid", "boot-1")
NOTHING = Known((), seen_holding=False)
REPORT = ReleaseReport(
    session_uid="session-1",
    verdict=Verdict.FREED,
    reason=Reason.FREED,
    memory_bytes_before=7,
    state=StateReport(cleared=True, reason=Reason.NOTHING_TO_CLEAR),
)

ENDLESS_BINDS = """
import asyncio, sys, time
from pathlib import Path
from gpusession.agent.ledger import Ledger
from gpusession.agent.ledger_row import Claim, Known

async def main():
    ledger, number = Ledger(Path(sys.argv[1]), now=time.time), 0
    while True:
        number += 1
        claim = Claim(f"s{number}", "default", "s", "p", f"pod-{number}", "boot")
        await ledger.bind(claim, baseline=())
        await ledger.begin(f"s{number}", Known((), False), bytes_before=number)
        print(number, flush=True)

asyncio.run(main())
"""


class Clock:
    """A wall clock that stands still."""

    now = 1_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Give a clock."""
    return Clock()


@pytest.fixture
async def ledger(tmp_path: Path, clock: Clock) -> AsyncIterator[Ledger]:
    """Give an empty ledger."""
    ledger = Ledger(tmp_path / "new" / "ledger.sqlite", now=clock)
    yield ledger
    await ledger.close()


async def test_a_bound_row_is_read_back_as_it_was(ledger: Ledger) -> None:
    """Claim, baseline and sightings come back."""
    await ledger.bind(CLAIM, baseline={ProcessId(7, 70)})
    await ledger.sight({"session-1": (["GPU-b"], 5)})
    await ledger.sight({"session-1": (["GPU-a"], 3)})

    row = await ledger.find("session-1")

    assert row is not None
    assert (row.claim, row.state, row.baseline) == (CLAIM, RowState.BOUND, {ProcessId(7, 70)})
    assert (row.seen_holding, row.gpu_uuids, row.max_bytes) == (True, ("GPU-a", "GPU-b"), 5)


async def test_a_pod_has_one_living_session(ledger: Ledger) -> None:
    """The second claim is refused until the first Session is done."""
    assert await ledger.bind(CLAIM, baseline=())
    second = CLAIM._replace(session_uid="session-2")
    assert not await ledger.bind(second, baseline=())
    await ledger.settle(CLAIM, REPORT, done=True)

    assert await ledger.bind(second, baseline=())
    assert await ledger.living_of_pod("pod-uid") == "session-2"


async def test_of_two_claims_at_once_one_wins(ledger: Ledger) -> None:
    """The index arbitrates."""
    claims = [CLAIM._replace(session_uid=f"session-{number}") for number in range(8)]

    won = await asyncio.gather(*(ledger.bind(claim, baseline=()) for claim in claims))

    assert sum(won) == 1


async def test_a_repeated_bind_keeps_what_is_known(ledger: Ledger) -> None:
    """Only the boot id is taken anew."""
    await ledger.bind(CLAIM, baseline={ProcessId(7, 70)})
    await ledger.sight({"session-1": (["GPU-a"], 5)})

    await ledger.bind(CLAIM._replace(boot_id="boot-2"), baseline={ProcessId(8, 80)})
    row = await ledger.find("session-1")

    assert row is not None
    assert (row.baseline, row.gpu_uuids) == ({ProcessId(7, 70)}, ("GPU-a",))
    assert row.claim.boot_id == "boot-2"


async def test_devices_that_were_given_are_known_and_not_seen(ledger: Ledger) -> None:
    """Each bind adds what it was told; only a sighting says that anything was held."""
    await ledger.bind(CLAIM, baseline=(), assigned={"GPU-b"})
    await ledger.bind(CLAIM, baseline=(), assigned={"GPU-a"})
    given = await ledger.find("session-1")
    await ledger.sight({"session-1": (["GPU-a"], 0)})
    seen = await ledger.find("session-1")

    assert given is not None
    assert seen is not None
    assert (given.gpu_uuids, given.seen_holding) == (("GPU-a", "GPU-b"), False)
    assert (seen.gpu_uuids, seen.seen_holding) == (("GPU-a", "GPU-b"), True)


async def test_what_a_failed_release_saw_is_known_to_the_next(ledger: Ledger) -> None:
    """Seen holding in the first attempt is Freed in the second, not NothingHeld."""
    await ledger.bind(CLAIM, baseline=())
    held = msgspec.structs.replace(
        REPORT, verdict=Verdict.HELD, gpu_uuids=("GPU-a",), seen_holding=True
    )

    await ledger.settle(CLAIM, held, done=False)
    row = await ledger.find("session-1")

    assert row is not None
    assert (row.gpu_uuids, row.seen_holding) == (("GPU-a",), True)


async def test_the_first_bytes_before_stay_and_attempts_count(ledger: Ledger) -> None:
    """A later attempt finds less, which is not what the release began with."""
    await ledger.bind(CLAIM, baseline=())

    await ledger.begin("session-1", NOTHING, bytes_before=None)
    await ledger.begin("session-1", Known(("GPU-a",), seen_holding=True), bytes_before=9)
    row = await ledger.begin("session-1", NOTHING, bytes_before=0)

    assert row is not None
    assert (row.bytes_before, row.attempts, row.seen_holding) == (9, 3, True)


async def test_a_done_row_cannot_begin_again_when_another_session_has_the_pod(
    ledger: Ledger,
) -> None:
    """What lives in the Pod is no longer the first Session's."""
    await ledger.bind(CLAIM, baseline=())
    await ledger.settle(CLAIM, REPORT, done=True)
    await ledger.bind(CLAIM._replace(session_uid="session-2"), baseline=())

    assert await ledger.begin("session-1", NOTHING, bytes_before=1) is None


async def test_a_report_survives_reopening(tmp_path: Path, clock: Clock) -> None:
    """The next agent process answers with it."""
    first = Ledger(tmp_path / "ledger.sqlite", now=clock)
    await first.bind(CLAIM, baseline=())
    await first.settle(CLAIM, REPORT, done=True)
    await first.close()
    reopened = Ledger(tmp_path / "ledger.sqlite", now=clock)

    row = await reopened.find("session-1")
    await reopened.close()

    assert row is not None
    assert (row.state, row.report) == (RowState.DONE, REPORT)


async def test_a_file_of_an_earlier_version_is_read_and_added_to(
    tmp_path: Path, clock: Clock
) -> None:
    """An agent that is upgraded knows what its predecessor did, and how much it can know."""
    file = tmp_path / "ledger.sqlite"
    first = Ledger(file, now=clock)
    await first.bind(CLAIM, baseline=())
    await first.settle(CLAIM, REPORT, done=True, looked_after=True)
    await first.close()
    with closing(sqlite3.connect(file)) as db:
        db.execute("ALTER TABLE sessions DROP COLUMN looked_after")
    upgraded = Ledger(file, now=clock)

    before = await upgraded.find("session-1")
    await upgraded.settle(CLAIM, REPORT, done=True, looked_after=True)
    after = await upgraded.find("session-1")
    await upgraded.close()

    assert before is not None
    assert after is not None
    assert (before.report, before.looked_after, after.looked_after) == (REPORT, False, True)


async def test_done_rows_are_forgotten_after_a_week_and_living_ones_never(
    ledger: Ledger, clock: Clock
) -> None:
    """Retention is for evidence; a bound Session is no evidence yet."""
    await ledger.bind(CLAIM, baseline=())
    other = CLAIM._replace(session_uid="session-2", pod_uid="other")
    await ledger.settle(other, replace_uid(REPORT, "session-2"), done=True)

    clock.now += KEEP_DONE.total_seconds()
    await ledger.prune()
    kept = len(await ledger.rows())
    clock.now += timedelta(seconds=1).total_seconds()
    await ledger.prune()

    assert kept == 2
    assert [row.session_uid for row in await ledger.rows()] == ["session-1"]


async def test_a_deposed_leader_is_refused(ledger: Ledger) -> None:
    """The highest epoch seen is the fence, and the answer to those below it."""
    assert [await ledger.fence(epoch) for epoch in (0, 3, 3, 2, 4)] == [0, 3, 3, 3, 4]


async def test_a_second_agent_at_the_same_file_gets_no_answer(
    tmp_path: Path, ledger: Ledger, clock: Clock
) -> None:
    """Exactly once needs one process: the other one is not ready and does nothing."""
    await ledger.bind(CLAIM, baseline=())
    second = Ledger(tmp_path / "new" / "ledger.sqlite", now=clock)

    with pytest.raises(Retry, match="locked"):
        await second.check()
    await second.close()


async def test_a_file_that_is_no_ledger_is_said_so(tmp_path: Path, clock: Clock) -> None:
    """Nothing is guessed from a broken file."""
    (tmp_path / "broken").write_text("not a database, but long enough to look like one" * 30)
    ledger = Ledger(tmp_path / "broken", now=clock)

    with pytest.raises(Retry, match="not a database"):
        await ledger.check()
    await ledger.close()


async def test_what_was_answered_survives_kill_9(tmp_path: Path, clock: Clock) -> None:
    """Every row whose write returned is there after SIGKILL of the process."""
    file = tmp_path / "ledger.sqlite"
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ENDLESS_BINDS, str(file)),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "operator")},
    )
    assert writer.stdout is not None
    answered = [int(await writer.stdout.readline()) for _ in range(20)]
    writer.send_signal(signal.SIGKILL)
    rest = await writer.stdout.read()
    await writer.wait()
    ledger = Ledger(file, now=clock)

    rows = {row.session_uid: row for row in await ledger.rows()}
    await ledger.close()

    for number in [*answered, *map(int, rest.split())]:
        assert rows[f"s{number}"].bytes_before == number


def replace_uid(report: ReleaseReport, uid: str) -> ReleaseReport:
    """Give the same report of another Session."""
    return ReleaseReport(
        session_uid=uid, verdict=report.verdict, reason=report.reason, state=report.state
    )
