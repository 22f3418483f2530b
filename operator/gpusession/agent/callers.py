"""Lets in the one caller that may give orders: the controller, by its ServiceAccount token.

kube-apiserver judges each token. A good answer is believed for a while, so that releases go
on when the apiserver is away; without an answer nobody new gets in.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from gpusession.api.release import TOKEN_AUDIENCE
from gpusession.errors import Refused
from gpusession.kube.reader import KubeReader

NEGATIVE_CACHE = timedelta(seconds=5)
"""A bad token is asked about that often at most; a fixed binding works soon after."""

_MOST_TOKENS = 1024
"""Remembered at once: ours are two, and what strangers send must not fill the memory."""

_REVIEWS_AT_ONCE = 4
"""So many TokenReviews at a time: strangers must not flood the apiserver through us."""

UNAUTHENTICATED = "Unauthorized"
FORBIDDEN = "Forbidden"


@dataclass(frozen=True, slots=True)
class _Known:
    """What a token is worth until when; `refusal` is None for the allowed caller."""

    until: float
    refusal: tuple[str, str] | None


class CallerCheck:
    """Checks bearer tokens by TokenReview, with a cache keyed by their digest."""

    def __init__(
        self,
        reader: KubeReader,
        *,
        allowed_caller: str,
        cache: timedelta,
        monotonic: Callable[[], float],
    ) -> None:
        self._reader = reader
        self._allowed_caller = allowed_caller
        self._cache = cache
        self._monotonic = monotonic
        self._known: dict[bytes, _Known] = {}
        self._permits = asyncio.Semaphore(_REVIEWS_AT_ONCE)

    async def check(self, authorization: str | None) -> None:
        """Return for the allowed caller.

        Raises Refused with reason UNAUTHENTICATED or FORBIDDEN, and ApiUnavailable where
        an unknown token could not be judged.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refused("a bearer token is needed", reason=UNAUTHENTICATED)
        digest = hashlib.sha256(token.encode()).digest()
        known = self._recall(digest)
        if known is None:
            async with self._permits:
                known = self._recall(digest) or await self._review(token, digest)
        if known.refusal is not None:
            reason, message = known.refusal
            raise Refused(message, reason=reason)

    def _recall(self, digest: bytes) -> _Known | None:
        known = self._known.get(digest)
        return known if known is not None and self._monotonic() < known.until else None

    async def _review(self, token: str, digest: bytes) -> _Known:
        asked_at = self._monotonic()
        identity = await self._reader.review_token(token, audience=TOKEN_AUDIENCE)
        refusal: tuple[str, str] | None = None
        if not identity.authenticated or TOKEN_AUDIENCE not in identity.audiences:
            refusal = UNAUTHENTICATED, f"no valid token for audience {TOKEN_AUDIENCE}"
        elif identity.username != self._allowed_caller:
            refusal = FORBIDDEN, f"{identity.username} may not give orders to agents"
        life = self._cache if refusal is None else min(self._cache, NEGATIVE_CACHE)
        known = _Known(asked_at + life.total_seconds(), refusal)
        self._remember(digest, known)
        return known

    def _remember(self, digest: bytes, known: _Known) -> None:
        if len(self._known) >= _MOST_TOKENS:
            now = self._monotonic()
            good = {d: k for d, k in self._known.items() if k.refusal is None and k.until > now}
            self._known = good
        self._known[digest] = known
