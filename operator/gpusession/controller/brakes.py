"""The brakes of all scopes: who is silent, who may go now, and who is held.

A silent Session counts in three scopes: the cluster, its node, and the gateway that heard it
last. The tightest brake rules. What it decides upon is in `rules/brake.py`.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, takewhile

import structlog

from gpusession.metrics import EXPIRY_BRAKE, EXPIRY_GRANTS, EXPIRY_HELD, EXPIRY_SILENT
from gpusession.rules.brake import (
    Brake,
    BrakeLimits,
    Bucket,
    Level,
    ScopeKind,
    filled,
    has_held_too_long,
    moved,
    rate,
    taken,
    wanted,
)

Scope = tuple[ScopeKind, str]

CLUSTER: Scope = (ScopeKind.CLUSTER, "")

GRANT_SECONDS = 30.0
"""A grant that nobody used by then was for a Session that had been heard again."""

CONSIDERED = 5000
"""Of a crowd per sweep: 10 ms. They are drawn at random, so nobody is forgotten."""

TOLD_SCOPES = 20
"""Log lines per sweep: in a disaster each node's brake moves."""

RELIEF_SECONDS = 86400.0
"""How long the end of a Full is remembered: longer than any sensible threshold."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Held:
    """Why a Session may not go now, and whether people must hear of it."""

    message: str
    pauses: bool


@dataclass(frozen=True, slots=True)
class _Silence:
    scopes: tuple[Scope, ...]
    until: float


class Brakes:
    """Notes silence, sets the brakes, and gives each Session its turn to go.

    `works` says whether a Session's GPU works, None where nobody knows; `clock` is monotonic,
    in seconds. `draw` orders a waiting crowd while a brake is on, so that no one tenant goes
    first. All is counted as it comes: a sweep costs what is silent, not what there is.
    """

    def __init__(
        self,
        limits: BrakeLimits,
        *,
        works: Callable[[str], bool | None],
        clock: Callable[[], float],
        draw: random.Random | None = None,
    ) -> None:
        self._limits = limits
        self._works = works
        self._clock = clock
        self._draw = draw or random.Random()  # noqa: S311 - an order, no secret
        self._silent: dict[str, _Silence] = {}
        """In the order in which they run out."""
        self._waiting: dict[str, None] = {}
        """Those that are overdue, in the order of their coming."""
        self._granted: dict[str, float] = {}
        self._counts = Counter[Scope]()
        self._brakes: dict[Scope, Brake] = {CLUSTER: Brake()}
        self._buckets: dict[Scope, Bucket] = {}
        self._relieved: dict[Scope, float] = {}
        self._totals: Mapping[Scope, int] = {}
        self._gateways = 1

    def count(self, totals: Mapping[Scope, int]) -> None:
        """Take in how many Sessions each scope has."""
        self._totals = totals
        self._gateways = max(1, sum(kind is ScopeKind.GATEWAY for kind, _ in totals))

    def note(self, uid: str, *, node: str, gateway: str, overdue: bool) -> None:
        """Count a silent Session; one that is overdue also waits for its turn."""
        self._uncount(uid)
        scopes = _scopes(node, gateway)
        for scope in scopes:
            self._counts[scope] += 1
        until = self._clock() + self._limits.window.total_seconds()
        self._silent[uid] = _Silence(scopes, until)
        if overdue:
            self._waiting.setdefault(uid)

    def heard(self, uid: str) -> None:
        """Forget the silence of a Session that was found fresh, or that is gone."""
        self._uncount(uid)
        self._waiting.pop(uid, None)
        self._granted.pop(uid, None)

    def forget_all(self) -> None:
        """Begin anew with a new watch: what was silent before it proves nothing."""
        self._silent.clear()
        self._waiting.clear()
        self._granted.clear()
        self._counts.clear()

    def advance(self) -> tuple[list[str], bool]:
        """Set every brake; return whose turn has come, and whether the cluster left Full."""
        now = self._clock()
        self._expire(now)
        moves: list[tuple[Scope, Brake]] = []
        for scope in {*self._counts, *self._brakes}:
            before = self._brakes.get(scope, Brake())
            level = wanted(self._counts[scope], self._total(scope), self._limits)
            after = moved(before, level, now=now, limits=self._limits)
            self._brakes[scope] = after
            if after.level is not before.level:
                moves.append((scope, before))
        left = [scope for scope, before in moves if before.level is Level.FULL]
        self._relieve(left, now)
        self._tell([scope for scope, _ in moves])
        self._tidy()
        turns = self._turns(now)
        self._publish(turns)
        return turns, CLUSTER in left

    def held(self, uid: str) -> Held | None:
        """Say why a Session may not go now; None where its turn has come."""
        if uid in self._granted:
            return None
        scope = self._full_scope(uid)
        if scope is None:
            return Held("others that fell silent go first", pauses=False)
        name = " ".join(part for part in scope if part)
        return Held(f"most Sessions of the {name} fell silent at once", pauses=True)

    def is_paused(self, uid: str) -> bool:
        """Tell whether a Session waits behind a full brake."""
        waits = uid in self._waiting and uid not in self._granted
        return waits and self._full_scope(uid) is not None

    def is_whole_node_silent(self, node: str) -> bool:
        """Tell whether nobody on a node is heard."""
        scope = (ScopeKind.NODE, node)
        return self._counts[scope] >= self._totals.get(scope, 0)

    def relieved(self, *, node: str, gateway: str) -> float | None:
        """Say when a full brake was last left that held such Sessions, by our clock."""
        times = [self._relieved[s] for s in _scopes(node, gateway) if s in self._relieved]
        return max(times, default=None)

    def overdue(self) -> Iterator[str]:
        """Give all who wait for a turn; the brakes must not change meanwhile."""
        return iter(self._waiting)

    def _full_scope(self, uid: str) -> Scope | None:
        one = self._silent.get(uid)
        for scope in one.scopes if one else (CLUSTER,):
            brake = self._brakes.get(scope)
            if brake is not None and brake.level is Level.FULL:
                return scope
        return None

    # ---- turns ----

    def _turns(self, now: float) -> list[str]:
        self._fill(now)
        turns: list[str] = []
        for uid in islice(self._crowd(), CONSIDERED):
            if self._buckets[CLUSTER].tokens < 1:
                break  # nobody goes without the cluster's leave
            if uid not in self._granted and self._may_go(uid, now):
                turns.append(uid)
        for uid in turns:
            del self._waiting[uid]  # whoever is found overdue again waits again
            self._granted[uid] = now + GRANT_SECONDS
        return turns

    def _crowd(self) -> Iterator[str]:
        crowd = list(self._waiting)
        if all(brake.level is Level.NORMAL for brake in self._brakes.values()):
            yield from crowd
            return
        for left in range(len(crowd), 0, -1):
            drawn = int(self._draw.random() * left)
            crowd[drawn], crowd[left - 1] = crowd[left - 1], crowd[drawn]
            yield crowd[left - 1]

    def _may_go(self, uid: str, now: float) -> bool:
        held, braking = False, [CLUSTER]
        for scope in self._silent[uid].scopes:
            brake = self._brakes.get(scope)
            if brake is None or brake.level is Level.NORMAL:
                continue
            if brake.level is Level.FULL:
                if not has_held_too_long(brake, now=now, limits=self._limits):
                    return False
                held = True
            if scope != CLUSTER:
                braking.append(scope)
        if held and self._works(uid) is not False:
            return False  # suspicion is enough for a GPU that works, or may work
        return self._take(braking)

    def _take(self, scopes: list[Scope]) -> bool:
        left = [taken(self._buckets[scope]) for scope in scopes]
        for scope, bucket in zip(scopes, left, strict=True):
            if bucket is not None and None not in left:
                self._buckets[scope] = bucket
        return None not in left

    def _fill(self, now: float) -> None:
        """Let time add tokens, once per sweep and at each scope's own rate."""
        for scope, brake in self._brakes.items():
            if scope != CLUSTER and brake.level is Level.NORMAL:
                continue
            overlong = has_held_too_long(brake, now=now, limits=self._limits)
            level = Level.PARTIAL if overlong else brake.level
            per_second = rate(level, self._total(scope), self._limits)
            self._buckets[scope] = filled(self._buckets.get(scope, Bucket()), per_second, now=now)

    # ---- counts ----

    def _total(self, scope: Scope) -> int:
        counted, silent = self._totals.get(scope, 0), self._counts[scope]
        if scope[0] is not ScopeKind.GATEWAY:
            return max(counted, silent)
        # Who has hung up, or beats by HTTP, is not among a gateway's connections; the latter
        # spread evenly over the gateways.
        return max(counted + silent, self._totals.get(CLUSTER, 0) // self._gateways)

    def _uncount(self, uid: str) -> None:
        known = self._silent.pop(uid, None)
        for scope in known.scopes if known else ():
            self._counts[scope] -= 1
            if not self._counts[scope]:
                del self._counts[scope]

    def _expire(self, now: float) -> None:
        for uid in list(takewhile(lambda u: self._silent[u].until < now, self._silent)):
            self._uncount(uid)
            self._waiting.pop(uid, None)
        for uid in list(takewhile(lambda u: self._granted[u] < now, self._granted)):
            del self._granted[uid]

    def _relieve(self, left: list[Scope], now: float) -> None:
        """Begin anew where Full was left: whoever it held has a whole threshold again."""
        for scope in left:
            self._relieved.pop(scope, None)
            self._relieved[scope] = now
        gone = set(left)
        if gone:
            for uid in [u for u, one in self._silent.items() if not gone.isdisjoint(one.scopes)]:
                self.heard(uid)
        old = now - RELIEF_SECONDS
        for scope in list(takewhile(lambda s: self._relieved[s] < old, self._relieved)):
            del self._relieved[scope]

    def _tidy(self) -> None:
        for scope in [s for s, b in self._brakes.items() if b.level is Level.NORMAL]:
            if scope != CLUSTER:
                del self._brakes[scope]
                self._buckets.pop(scope, None)

    # ---- words ----

    def _publish(self, turns: list[str]) -> None:
        EXPIRY_GRANTS.inc(len(turns))
        for kind in ScopeKind:
            levels = [b.level for (k, _), b in self._brakes.items() if k is kind]
            EXPIRY_BRAKE.labels(kind).set(max(levels, default=Level.NORMAL))
        EXPIRY_SILENT.set(len(self._silent))
        EXPIRY_HELD.set(len(self._waiting))

    def _tell(self, moved_scopes: list[Scope]) -> None:
        for kind, name in sorted(moved_scopes)[:TOLD_SCOPES]:
            level = self._brakes[kind, name].level
            write = log.info if level is Level.NORMAL else log.warning
            silent = self._counts[kind, name]
            write("expiry brake", scope=kind, name=name, brake=level.name, silent=silent)
        if (untold := len(moved_scopes) - TOLD_SCOPES) > 0:
            log.warning("more expiry brakes have moved", count=untold)


def _scopes(node: str, gateway: str) -> tuple[Scope, ...]:
    small = ((ScopeKind.NODE, node), (ScopeKind.GATEWAY, gateway))
    return (CLUSTER, *(scope for scope in small if scope[1]))
