"""The brakes of all scopes: who is silent, who may go now, and who is held.

A silent Session counts in three scopes: the cluster, its node, and the gateway that heard it
last. The tightest brake rules. What it decides upon is in `rules/brake.py`.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Held:
    """Why a Session may not go now, and whether people must hear of it."""

    message: str
    pauses: bool


@dataclass(slots=True)
class _Silence:
    scopes: tuple[Scope, ...]
    until: float
    waits: bool = False


class Brakes:
    """Notes silence, sets the brakes, and gives each Session its turn to go.

    `works` says whether a Session's GPU works, None where nobody knows; `clock` is monotonic,
    in seconds. `draw` orders a
    waiting crowd while a brake is on, so that no one tenant goes first.
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
        self._granted: dict[str, float] = {}
        self._brakes: defaultdict[Scope, Brake] = defaultdict(Brake)
        self._buckets: defaultdict[Scope, Bucket] = defaultdict(Bucket)
        self._totals: Mapping[Scope, int] = {}
        self._counts = Counter[Scope]()

    def count(self, totals: Mapping[Scope, int]) -> None:
        """Take in how many Sessions each scope has."""
        self._totals = totals

    def note(self, uid: str, *, node: str, gateway: str, overdue: bool) -> None:
        """Count a silent Session; one that is overdue also waits for its turn."""
        scopes = [CLUSTER]
        scopes += [(ScopeKind.NODE, node)] if node else []
        scopes += [(ScopeKind.GATEWAY, gateway)] if gateway else []
        known = self._silent.get(uid)
        waits = overdue or (known is not None and known.waits)
        until = self._clock() + self._limits.window.total_seconds()
        self._silent[uid] = _Silence(tuple(scopes), until, waits)

    def heard(self, uid: str) -> None:
        """Forget the silence of a Session that was found fresh, or that is gone."""
        self._silent.pop(uid, None)
        self._granted.pop(uid, None)

    def forget_all(self) -> None:
        """Begin anew with a new watch: what was silent before it proves nothing."""
        self._silent.clear()
        self._granted.clear()

    def advance(self) -> tuple[list[str], bool]:
        """Set every brake; return whose turn has come, and whether Full was left."""
        now = self._clock()
        self._expire(now)
        silent = Counter(scope for one in self._silent.values() for scope in one.scopes)
        self._counts = silent
        left_full = False
        for scope in {*silent, *self._brakes}:
            before = self._brakes[scope]
            level = wanted(silent[scope], self._total(scope), self._limits)
            after = moved(before, level, now=now, limits=self._limits)
            self._brakes[scope] = after
            if after.level is not before.level:
                left_full |= before.level is Level.FULL
                self._tell(scope, after, silent[scope])
        self._publish()
        return self._turns(now), left_full

    def held(self, uid: str) -> Held | None:
        """Say why a Session may not go now; None where its turn has come."""
        if uid in self._granted:
            return None
        one = self._silent.get(uid)
        for scope in one.scopes if one else (CLUSTER,):
            if self._brakes.get(scope, Brake()).level is Level.FULL:
                name = " ".join(part for part in scope if part)
                return Held(f"most Sessions of the {name} fell silent at once", pauses=True)
        return Held("others that fell silent go first", pauses=False)

    def is_whole_node_silent(self, node: str) -> bool:
        """Tell whether nobody on a node was heard, as of the last sweep."""
        scope = (ScopeKind.NODE, node)
        return self._counts[scope] >= self._totals.get(scope, 0)

    @property
    def waiting(self) -> list[str]:
        """Those whose turn has not come."""
        return [u for u, one in self._silent.items() if one.waits and u not in self._granted]

    def _turns(self, now: float) -> list[str]:
        crowd = self.waiting
        if any(brake.level is not Level.NORMAL for brake in self._brakes.values()):
            self._draw.shuffle(crowd)
        turns = [uid for uid in crowd if self._may_go(uid, now)]
        self._granted |= dict.fromkeys(turns, now + GRANT_SECONDS)
        EXPIRY_GRANTS.inc(len(turns))
        return turns

    def _may_go(self, uid: str, now: float) -> bool:
        scopes = self._silent[uid].scopes
        full = [scope for scope in scopes if self._brakes[scope].level is Level.FULL]
        if any(not self._is_overlong(scope, now) for scope in full):
            return False
        if full and self._works(uid) is not False:
            return False  # suspicion is enough for a GPU that works, or may work
        level = Level.PARTIAL if full else max(self._brakes[scope].level for scope in scopes)
        # The cluster's bucket at least; where a smaller scope brakes, its own as well.
        braking = [s for s in scopes if s == CLUSTER or self._brakes[s].level >= level]
        return self._take(braking, level, now)

    def _is_overlong(self, scope: Scope, now: float) -> bool:
        return has_held_too_long(self._brakes[scope], now=now, limits=self._limits)

    def _take(self, scopes: list[Scope], level: Level, now: float) -> bool:
        drained: dict[Scope, Bucket] = {}
        for scope in scopes:
            per_second = rate(level, self._total(scope), self._limits)
            self._buckets[scope] = filled(self._buckets[scope], per_second, now=now)
            left = taken(self._buckets[scope])
            if left is None:
                return False
            drained[scope] = left
        self._buckets.update(drained)
        return True

    def _total(self, scope: Scope) -> int:
        counted, silent = self._totals.get(scope, 0), self._counts[scope]
        if scope[0] is not ScopeKind.GATEWAY:
            return max(counted, silent)
        # Who has hung up, or beats by HTTP, is not among a gateway's connections; the latter
        # spread evenly over the gateways.
        gateways = sum(kind is ScopeKind.GATEWAY for kind, _ in self._totals)
        return max(counted + silent, self._totals.get(CLUSTER, 0) // max(1, gateways))

    def _expire(self, now: float) -> None:
        for uid in [u for u, one in self._silent.items() if one.until < now]:
            del self._silent[uid]
        for uid in [u for u, until in self._granted.items() if until < now]:
            del self._granted[uid]

    def _publish(self) -> None:
        for kind in ScopeKind:
            levels = [b.level for (k, _), b in self._brakes.items() if k is kind]
            EXPIRY_BRAKE.labels(kind).set(max(levels, default=Level.NORMAL))
        EXPIRY_SILENT.set(len(self._silent))
        EXPIRY_HELD.set(len(self.waiting))
        for scope in [s for s, b in self._brakes.items() if b == Brake() and s != CLUSTER]:
            del self._brakes[scope]

    @staticmethod
    def _tell(scope: Scope, brake: Brake, silent: int) -> None:
        write = log.info if brake.level is Level.NORMAL else log.warning
        write("expiry brake", scope=scope[0], name=scope[1], level=brake.level.name, silent=silent)
