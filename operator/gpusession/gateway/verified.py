"""Remembers which tokens this gateway has seen verified, by digest.

Redis may lose its data. Then a client comes with a token that Redis does not know, and only
whoever had it verified before can tell a living client from a stranger.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from gpusession.tokens import Presented

OVERLAP = timedelta(seconds=60)
"""An old token lives so long beside the new one (store/scripts/parts/tokens.lua)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of one digest: how long ago it was good, and for how long it still is."""

    ago: timedelta
    lasts: timedelta


@dataclass(slots=True)
class _Entry:
    verified_at: float
    expires_at: float
    rotated: bool = False


class VerifiedTokens:
    """A bounded memory; what was used last stays longest."""

    def __init__(self, *, most: int, life: timedelta, monotonic: Callable[[], float]) -> None:
        self._most = most
        self._life = life.total_seconds()
        self._monotonic = monotonic
        self._entries: OrderedDict[Presented, _Entry] = OrderedDict()
        self._of_uid: dict[str, set[Presented]] = {}

    def note(self, who: Presented) -> None:
        """Redis has just said that this one is good."""
        now = self._monotonic()
        entry = self._entries.get(who)
        if entry is not None:
            entry.verified_at = now
            if not entry.rotated:
                entry.expires_at = now + self._life
            self._entries.move_to_end(who)
            return
        self._entries[who] = _Entry(now, now + self._life)
        self._of_uid.setdefault(who.uid, set()).add(who)
        if len(self._entries) > self._most:
            self._drop(next(iter(self._entries)))

    def rotate(self, who: Presented) -> None:
        """Another token stands in its place; this one is good for a moment yet.

        Known from now on even if it never was here: it may still come, and would pass for
        one that nobody has replaced.
        """
        if who not in self._entries:
            self.note(who)
        entry = self._entries[who]
        entry.rotated = True
        entry.expires_at = min(entry.expires_at, self._monotonic() + OVERLAP.total_seconds())

    def recall(self, who: Presented) -> Memory | None:
        """Tell when it was last good; None if it never was here, or not any more."""
        entry, now = self._entries.get(who), self._monotonic()
        if entry is None or entry.expires_at <= now:
            return None
        return Memory(
            timedelta(seconds=now - entry.verified_at), timedelta(seconds=entry.expires_at - now)
        )

    def forget(self, uid: str) -> None:
        """Its tokens were revoked, or its Session is over: none of them is ever good again."""
        for who in tuple(self._of_uid.get(uid, ())):
            self._drop(who)

    def _drop(self, who: Presented) -> None:
        del self._entries[who]
        digests = self._of_uid[who.uid]
        digests.discard(who)
        if not digests:
            del self._of_uid[who.uid]
