"""How many silent Sessions may end now: the more fall silent at once, the fewer.

When most of a cluster, a node or a gateway falls silent together, it is the observer that is
broken, not the clients. The shapes are those of the Kubernetes node lifecycle controller
(zones, reduced rate, full disruption, fresh timers on leaving it) and of Eureka (share per
pass, random victims). Explicit ends and lifetimes never come here.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum, StrEnum


class Level(IntEnum):
    """How far the brake is on."""

    NORMAL = 0
    PARTIAL = 1
    FULL = 2


class ScopeKind(StrEnum):
    """What may fail as one."""

    CLUSTER = "cluster"
    NODE = "node"
    GATEWAY = "gateway"

    # Enum's own is written in Python, and brakes look up scopes by the hundred thousand.
    __hash__ = str.__hash__


@dataclass(frozen=True, slots=True)
class BrakeLimits:
    """Numbers of the brake, filled from the settings."""

    minimum: int = 5
    """Fewer silent ones prove nothing about an observer."""

    partial_share: float = 0.3
    full_share: float = 0.55
    """As kube-controller-manager's --unhealthy-zone-threshold."""

    share_per_second: float = 0.02
    """Normal: 2 % of the Sessions per second, and one per second at least."""

    window: timedelta = timedelta(seconds=90)
    """How long a silence counts, and half of the calm that opens the brake: one threshold."""

    hold: timedelta = timedelta(minutes=30)
    """Longest time that Full holds a Session whose GPU does no work."""


@dataclass(frozen=True, slots=True)
class Brake:
    """The brake of one scope."""

    level: Level = Level.NORMAL
    since: float = 0.0
    """When it went to this level, by our monotonic clock."""
    calm_since: float | None = None
    """Since when less would do."""


def wanted(silent: int, total: int, limits: BrakeLimits) -> Level:
    """Say what so many silent ones of all call for."""
    if silent < limits.minimum or total <= 0:
        return Level.NORMAL
    share = silent / total
    if share >= limits.full_share:
        return Level.FULL
    return Level.PARTIAL if share >= limits.partial_share else Level.NORMAL


def moved(before: Brake, level: Level, *, now: float, limits: BrakeLimits) -> Brake:
    """Close at once, open only after two whole windows in which less would have done."""
    if level > before.level:
        return Brake(level, since=now)
    if level == before.level:
        return Brake(before.level, since=before.since)
    calm_since = now if before.calm_since is None else before.calm_since
    if now - calm_since >= 2 * limits.window.total_seconds():
        return Brake(level, since=now)
    return Brake(before.level, since=before.since, calm_since=calm_since)


def has_held_too_long(brake: Brake, *, now: float, limits: BrakeLimits) -> bool:
    """Tell whether Full has held for as long as memory may be kept on suspicion."""
    return brake.level is Level.FULL and now - brake.since >= limits.hold.total_seconds()


def rate(level: Level, total: int, limits: BrakeLimits) -> float:
    """Return how many may end per second."""
    normal = max(1.0, limits.share_per_second * total)
    return {Level.NORMAL: normal, Level.PARTIAL: normal / 10, Level.FULL: 0.0}[level]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket that holds one second's worth, and one token at least."""

    tokens: float = 0.0
    filled_at: float | None = None


def filled(bucket: Bucket, per_second: float, *, now: float) -> Bucket:
    """Let time add tokens; a new bucket has one, so that a single end waits for nothing."""
    if bucket.filled_at is None:
        return Bucket(1.0 if per_second > 0 else 0.0, now)
    tokens = bucket.tokens + per_second * (now - bucket.filled_at)
    most = max(1.0, per_second) if per_second > 0 else 0.0
    return Bucket(min(most, tokens), now)


def taken(bucket: Bucket) -> Bucket | None:
    """Take a token; None where there is none."""
    return Bucket(bucket.tokens - 1, bucket.filled_at) if bucket.tokens >= 1 else None
