"""Our record of each Session in the control Redis: liveness and who it belongs to.

The record can be lost at any time: the Session object rebuilds it, and a missing record is
never an expired one. Times are the server's own, so no two clocks are compared.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from gpusession.api.session import RecordState
from gpusession.store import keys
from gpusession.store.client import RedisClient

KEEP = timedelta(hours=24)
"""A record outlives its cap this long: a day of outage, and then nothing stays behind."""

SCAN_COUNT = 1000
"""Names looked at per SCAN step: about 1 ms of the server's one thread."""

PAGE = 200
"""Records per script call: about 1 ms of the server's one thread."""


class Claim(StrEnum):
    """What came of a claim."""

    WON = "won"
    """The end is the caller's, now or since an earlier call."""
    RETURNED = "returned"
    """The Session was heard since the caller looked: look again."""
    MISSING = "missing"
    """No record, or none that is whole, which proves nothing."""
    REWOUND = "rewound"
    """The server is not the one that was looked at, or has forgotten the look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessSpec:
    """What a Session's spec asks to be watched; a duration of 0 means not at all."""

    heartbeat_period: timedelta
    heartbeat_threshold: timedelta
    """Silence that ends the Session: period times failure threshold."""
    initial_delay: timedelta
    idle_timeout: timedelta
    signals: tuple[str, ...]
    disconnect_grace: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One Session as Redis knows it; the fields are called as in the hash.

    None stands for never. No time in it is later than the look, save for those that mean
    the future: `busy`, `first`, `cap`, `until`.
    """

    ns: str
    name: str
    user: str | None
    node: str
    state: RecordState
    cap: datetime
    """The end of the longest lifetime."""
    made: datetime
    """When this record was made; later than the Session's opening if Redis lost one."""

    hb: datetime
    """Last heartbeat, or the opening."""
    act: datetime
    """Last activity, or the opening; a heartbeat is no activity."""
    busy: datetime | None
    """The end of the time for which a client said that it is busy."""
    gpu: datetime | None
    """When the agent last saw the GPU busy."""
    gpuseen: datetime | None
    """When the agent last reported at all."""
    gpusince: datetime | None
    """Since when its reports have come without a gap."""
    dc: datetime | None
    """When the last client was seen to go."""
    doubt: datetime | None
    """When somebody last came with a token that we do not know."""

    per: timedelta
    hbt: timedelta
    first: datetime
    """No heartbeat is lost before this moment."""
    idt: timedelta
    sig: tuple[str, ...]
    dcg: timedelta

    why: str | None
    """Why it ends, from pending on."""
    until: datetime | None
    """Until when a pending end may be called off."""
    close: bool
    rev: bool
    gw: str | None
    """The gateway that brought the last beat."""
    n: int
    """Moves with every sign of life, and differs in every record: a claim says what it saw."""
    connections: Mapping[str, int]
    """Open connections by gateway."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A tick of ours, by which a server shows that it has forgotten nothing since."""

    number: int
    writer: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """A record, and the server's time of the look."""

    record: Record
    now: datetime
    announced: datetime | None = None
    """When the gateway that brought the last beat last announced itself, if it still does."""


class SessionStore:
    """The records, by Session uid. Every method may be repeated."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def open(  # noqa: PLR0913 - the parts of a record
        self,
        *,
        uid: str,
        namespace: str,
        name: str,
        user: str | None,
        node: str,
        lifetime: timedelta,
        liveness: LivenessSpec,
        state: RecordState = RecordState.ACTIVE,
        rebuilt: bool = False,
        why: str = "",
        grace: timedelta = timedelta(),
    ) -> bool:
        """Make sure that the record is there and whole, and watched as `liveness` asks.

        True if there was none.

        What an existing record says stands, its beats above all: an open that comes late
        or twice takes nothing back. `lifetime` is what is left of it now; `rebuilt` says that
        a record that is made now was lost, and tokens with it. A new one in state PENDING ends
        for `why`, and clients have `grace` anew to call that off.
        A heartbeat that the spec changes gets a whole threshold and delay anew, and the
        gateways are told.
        """
        limits = (milliseconds(lifetime), milliseconds(KEEP))
        whose = (uid, namespace, name, user or "", node, state)
        names = [keys.record(uid), keys.DEADLINES, keys.name(namespace, name), keys.EVENTS]
        made = await self._client.run(
            "open",
            keys=[*names, keys.user(user)] if user else names,
            args=(*whose, *limits, *_watched(liveness), int(rebuilt), why, milliseconds(grace)),
        )
        return bool(made)

    async def read(self, uid: str) -> Sighting | None:
        """Give the record; None where it is missing or not whole, which proves nothing."""
        answer: tuple[list[bytes], int, bytes | None]
        names = [keys.record(uid), keys.ANNOUNCED]
        answer = await self._client.run("read", keys=names, args=[])
        flat, clock, shown = answer
        try:
            fields = {
                field.decode(): value.decode()
                for field, value in zip(flat[::2], flat[1::2], strict=True)
            }
            announced = None if shown is None else moment(int(float(shown)))
            return Sighting(_record(fields, clock), moment(clock), announced)
        except (KeyError, ValueError, OverflowError):
            return None

    async def claim(
        self,
        uid: str,
        *,
        to: RecordState,
        why: str,
        grace: timedelta,
        counter: int | None,
        watch: Proof,
    ) -> Claim:
        """Take the one right to end the Session (RELEASING), or let its end begin (PENDING).

        Wins over a returning client only if nothing was heard since `counter`; None asks for
        no such proof. What was pending already needs none. `grace` counts for PENDING. The
        server must still know `watch`, the caller's last tick.
        Raises StoreUnavailable: the caller must hold, not assume that it won or lost.
        """
        answer: bytes = await self._client.run(
            "claim",
            keys=[keys.record(uid), keys.DEADLINES, keys.EVENTS, keys.TICK],
            args=(
                *(uid, to, why, milliseconds(grace), "" if counter is None else counter),
                *(watch.number, watch.writer),
            ),
        )
        return Claim(answer.decode())

    async def reopen(self, uid: str) -> bool:
        """Take back a claim that came to nothing; True if the record is active now.

        The Session counts as just heard and just used.
        """
        names = [keys.record(uid), keys.DEADLINES, keys.EVENTS]
        return bool(await self._client.run("reopen", keys=names, args=[uid]))

    async def mark(self, uid: str, state: RecordState, why: str = "") -> bool:
        """Write how far the end has come; False if there is no record, and none is made."""
        names = [keys.record(uid), keys.EVENTS]
        return bool(await self._client.run("mark", keys=names, args=[uid, state, why]))

    async def revoke(self, uid: str) -> bool:
        """Take every token away for good; False if there is no record."""
        return await revoke(self._client, uid)

    async def forget(self, uid: str) -> None:
        """Remove the record and all that leads to it: the last step of an end."""
        names = [keys.record(uid), keys.tokens(uid), keys.DEADLINES, keys.EVENTS]
        await self._client.run("forget", keys=names, args=[uid, keys.NAME_PREFIX, keys.user("")])

    async def note_usage(self, reports: Sequence[tuple[str, bool]]) -> int:
        """Note of each Session whether an agent saw its GPU busy; says how many have a record."""
        noted = 0
        for start in range(0, len(reports), PAGE):
            page = reports[start : start + PAGE]
            noted += await self._client.run(
                "note_usage",
                keys=[keys.record(uid) for uid, _ in page],
                args=[int(busy) for _, busy in page],
            )
        return noted

    async def loss(self) -> int | None:
        """Name the last loss of data that a tick has found; None before the first tick."""
        lost: bytes | None = await self._client.call("HGET", keys.TICK, "lost")
        return None if lost is None or not lost.isdigit() else int(lost)

    async def note_rebuilt(self, loss: int) -> None:
        """Say that all records are there again after that loss; a later one makes it void."""
        await self._client.call("HSET", keys.TICK, "rebuilt", loss)

    async def uids(self) -> frozenset[str]:
        """Give the uids of all records; one that comes or goes meanwhile may be missed."""
        found: set[str] = set()
        cursor = b"0"
        while True:
            pattern = keys.record("*")
            cursor, page = await self._client.call(
                "SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT
            )
            found.update(key.decode().removeprefix(keys.record("")) for key in page)
            if cursor == b"0":
                return frozenset(found)


async def revoke(client: RedisClient, uid: str) -> bool:
    """Take every token of a Session away for good; False if there is no record."""
    names = [keys.record(uid), keys.tokens(uid), keys.DEADLINES, keys.EVENTS]
    return bool(await client.run("revoke", keys=names, args=[uid]))


def moment(milliseconds: int) -> datetime:
    """Read a time of the server's clock."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)


def milliseconds(duration: timedelta) -> int:
    """Write a duration as the scripts count it."""
    return duration // timedelta(milliseconds=1)


def _watched(liveness: LivenessSpec) -> tuple[int | str, ...]:
    return (
        milliseconds(liveness.initial_delay),
        milliseconds(liveness.heartbeat_period),
        milliseconds(liveness.heartbeat_threshold),
        milliseconds(liveness.idle_timeout),
        ",".join(liveness.signals),
        milliseconds(liveness.disconnect_grace),
    )


def _record(fields: Mapping[str, str], clock: int) -> Record:
    def past(field: str) -> datetime | None:
        value = min(int(fields[field]), clock)
        return moment(value) if value else None

    def future(field: str) -> datetime | None:
        value = int(fields[field])
        return moment(value) if value else None

    def span(field: str) -> timedelta:
        return timedelta(milliseconds=int(fields[field]))

    return Record(
        ns=fields["ns"],
        name=fields["name"],
        user=fields["user"] or None,
        node=fields["node"],
        state=RecordState(fields["state"]),
        cap=moment(int(fields["cap"])),
        made=moment(min(int(fields["made"]), clock)),
        hb=moment(min(int(fields["hb"]), clock)),
        act=moment(min(int(fields["act"]), clock)),
        busy=future("busy"),
        gpu=past("gpu"),
        gpuseen=past("gpuseen"),
        gpusince=past("gpusince"),
        dc=past("dc"),
        doubt=past("doubt"),
        per=span("per"),
        hbt=span("hbt"),
        first=moment(int(fields["first"])),
        idt=span("idt"),
        sig=tuple(signal for signal in fields["sig"].split(",") if signal),
        dcg=span("dcg"),
        why=fields["why"] or None,
        until=future("until"),
        close=fields["close"] != "0",
        rev=fields["rev"] != "0",
        gw=fields["gw"] or None,
        n=int(fields["n"]),
        connections=Counter(
            field.removeprefix("c:").rpartition(":")[0]
            for field in fields
            if field.startswith("c:")
        ),
    )
