"""A Session's clients, the Redis that hears them, and the sweeper that watches it.

Redis keeps the promises of store/scripts: one record, compare-and-set between claim and
return, a tick that it forgets with everything else. The judging is the product's own.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gpusession.api.session import Reason, RecordState, SessionSpec
from gpusession.rules.actions import Claim
from gpusession.rules.continuity import Tick, Tolerances, Watch, is_recent, watched
from gpusession.rules.expiry import Fresh, Vitals, grace_is_over, heartbeat_threshold, judged
from gpusession.rules.observation import ABSENT, UNSEEN, Life, Look, Outcome

RANKS = [RecordState.ACTIVE, RecordState.PENDING, RecordState.RELEASING, RecordState.GONE]
PERIOD = timedelta(seconds=28)
"""Of the client's beats; the spec asks for 30 s."""

TOLERANCES = Tolerances()
SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Record:
    """What Redis knows of the Session."""

    beat: datetime
    first: datetime
    counter: int
    stage: RecordState = RecordState.ACTIVE
    why: str = ""
    until: datetime | None = None
    closed: bool = False
    revoked: bool = False


@dataclass(frozen=True)
class Memory:
    """All that one Redis server remembers."""

    record: Record | None = None
    tick: tuple[int, int] = (0, 0)
    """The number and the writer."""


class Clients:
    """One client, one Redis, one sweeper; public attributes are there to be broken."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.up = True
        self.run_id = 0
        self.memory = self.saved = Memory()
        self.lives = False
        """Whether the client beats."""
        self.heard = now
        """When a client was last alive, as far as somebody has, or must have, noticed."""
        self._tried = now
        self._down_since: datetime | None = None
        self.suspected = False
        self.watch = Watch()
        self._writer, self._number = 1, 0

    # ---- time ----

    def passes(self, spec: SessionSpec, time: timedelta) -> None:
        """Let time go on, second by second, with beats and sweeps."""
        for _ in range(int(time.total_seconds())):
            self.now += SECOND
            if self.up and self._down_since is not None:
                self._note_outage(self.now - self._down_since)
                self._down_since = None
            if not self.up:
                self._down_since = self._down_since or self.now
            if self.lives and self.now - self._tried >= PERIOD:
                self.beats()
            if self.up:
                self._sweeps(spec)

    def _note_outage(self, time: timedelta) -> None:
        """Take beats in a long outage for heard: the product must not miss them."""
        record = self.memory.record
        over = record is not None and record.stage is RecordState.RELEASING
        if time > TOLERANCES.longest_gap and not over:
            self.heard = max(self.heard, self._tried)

    def beats(self) -> None:
        """Let the client beat; while Redis is away it is not heard."""
        self._tried = self.now
        record = self.memory.record
        if (
            not self.up
            or record is None
            or record.stage in (RecordState.RELEASING, RecordState.GONE)
        ):
            return
        self.heard = self.now
        back = record.stage is RecordState.PENDING and record.why == Reason.HEARTBEAT_LOST
        record = replace(record, beat=self.now, counter=record.counter + 1)
        if back:
            record = replace(record, stage=RecordState.ACTIVE, why="", until=None)
            self.suspected = True
        self.memory = replace(self.memory, record=record)

    def writes(self, **fields: bool) -> bool:
        """Let a client close, or somebody revoke; False where Redis did not take it."""
        if not self.up or self.memory.record is None:
            return False
        self.memory = replace(self.memory, record=replace(self.memory.record, **fields))
        return True

    # ---- what happens to Redis ----

    def loses(self, how: str) -> None:
        """Wipe it, put an older copy in its place, or start it anew."""
        match how:
            case "wiped":
                self.memory = Memory()
            case "saved":
                self.saved = self.memory
            case "restored":
                self.memory, self.run_id = self.saved, self.run_id + 1
            case "restarted":
                self.run_id += 1

    def new_controller(self) -> None:
        """Forget the watch: another life of the controller begins another one."""
        self.watch, self._number, self.suspected = Watch(), 0, True
        self._writer += 1

    # ---- the sweeper ----

    def _sweeps(self, spec: SessionSpec) -> None:
        remembers = self.memory.tick == (self._number, self._writer)
        self._number = self.memory.tick[0] + 1
        self.memory = replace(self.memory, tick=(self._number, self._writer))
        at = self.now.timestamp()
        tick = Tick(
            run_id=str(self.run_id), replication_id="", is_primary=True, remembers=remembers,
            now=self.now, gateways=1, sent_at=at, answered_at=at,
        )  # fmt: skip
        self.watch = watched(self.watch, tick, tolerances=TOLERANCES)
        seen = self.look(spec)
        quiet = isinstance(seen, Life) and isinstance(seen.liveness, Fresh)
        record = self.memory.record
        odd = (
            record is None
            or record.stage is not RecordState.ACTIVE
            or record.closed
            or record.revoked
        )
        self.suspected |= odd or not quiet

    def _is_watching(self) -> bool:
        last, now = self.watch.last, self.now.timestamp()
        return self.up and last is not None and is_recent(last, now, tolerances=TOLERANCES)

    # ---- the controller's side ----

    def look(self, spec: SessionSpec) -> Life | Look:
        """Read the record and have it judged."""
        record = self.memory.record
        if not self._is_watching():
            return UNSEEN
        if record is None:
            return ABSENT
        vitals = Vitals(
            now=self.now,
            stage=record.stage,
            counter=record.counter,
            beat=record.beat,
            first_due=record.first,
            activity=record.beat,
            pending_until=record.until,
            closed=record.closed,
            revoked=record.revoked,
        )
        return Life(
            vitals,
            judged(vitals, self.watch, spec),
            watched_since=self.watch.since,
            grace_over=grace_is_over(vitals, self.watch, spec),
        )

    def opens(self, spec: SessionSpec) -> bool:
        """Make the record if there is none; True if it was made."""
        if not self.up or self.memory.record is not None:
            return False
        first = self.now + heartbeat_threshold(spec)
        counter = int(self.now.timestamp())
        self.memory = replace(self.memory, record=Record(self.now, first, counter))
        return True

    def claims(self, action: Claim) -> Outcome:
        """Take the right to end; against a client who returns exactly one wins."""
        record, since = self.memory.record, action.watched_since
        if not self._is_watching() or since not in (None, self.watch.since):
            return Outcome.UNKNOWN
        number, writer = self.memory.tick
        if writer != self._writer or number < self._number or record is None:
            return Outcome.UNKNOWN
        if RANKS.index(record.stage) >= RANKS.index(action.stage):
            return Outcome.WON
        is_other = action.counter not in (None, record.counter)
        if record.stage is RecordState.ACTIVE and is_other:
            return Outcome.RETURNED
        until = self.now + action.grace if action.stage is RecordState.PENDING else record.until
        record = replace(record, stage=action.stage, why=action.reason, until=until)
        self.memory = replace(self.memory, record=record)
        return Outcome.WON

    def reopens(self) -> None:
        """Take a claim back that came to nothing."""
        record = self.memory.record
        if self.up and record is not None and record.stage is not RecordState.ACTIVE:
            record = replace(
                record, stage=RecordState.ACTIVE, why="", until=None, beat=self.now,
                counter=record.counter + 1,
            )  # fmt: skip
            self.memory = replace(self.memory, record=record)

    def marks(self) -> None:
        """Tell the clients that it ends."""
        record = self.memory.record
        if self.up and record is not None:
            self.memory = replace(self.memory, record=replace(record, stage=RecordState.RELEASING))

    def forgets(self) -> None:
        """Drop the record."""
        if self.up:
            self.memory = replace(self.memory, record=None)
