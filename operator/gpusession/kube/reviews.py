"""What kube-apiserver says of a caller: whose token it is, and what its owner may do.

Agent and gateway ask. A good TokenReview is believed for a while, so that known callers go
on when the apiserver is away; without an answer nobody new gets in.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import msgspec

from gpusession.api.session import GROUP
from gpusession.errors import Refused
from gpusession.kube.client import KubeClient

NEGATIVE_CACHE = timedelta(seconds=5)
"""A bad token is asked about that often at most; a fixed binding works soon after."""

UNAUTHENTICATED = "Unauthorized"

_MOST_TOKENS = 1024
"""Remembered at once: what strangers send must not fill the memory."""

_REVIEWS_AT_ONCE = 4
"""So many TokenReviews at a time: strangers must not flood the apiserver through us."""


class TokenIdentity(NamedTuple):
    """What a TokenReview said of a token; all that a SubjectAccessReview wants to know."""

    authenticated: bool
    username: str = ""
    audiences: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = {}


class _ReviewUser(msgspec.Struct, frozen=True):
    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, tuple[str, ...]] = {}


class _TokenStatus(msgspec.Struct, frozen=True):
    authenticated: bool = False
    user: _ReviewUser = _ReviewUser()
    audiences: tuple[str, ...] = ()


class _TokenReview(msgspec.Struct, frozen=True):
    status: _TokenStatus = _TokenStatus()


class _AccessStatus(msgspec.Struct, frozen=True):
    allowed: bool = False


class _AccessReview(msgspec.Struct, frozen=True):
    status: _AccessStatus = _AccessStatus()


class KubeReviews:
    """Asks for one judgement at a time; every method may raise ApiUnavailable."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client

    async def token(self, token: str, *, audience: str) -> TokenIdentity:
        """Ask whose token this is, meant for this audience."""
        spec = {"token": token, "audiences": [audience]}
        answer = await self._ask("authentication.k8s.io", "TokenReview", spec)
        status = msgspec.json.decode(answer, type=_TokenReview).status
        user = status.user
        return TokenIdentity(
            authenticated=status.authenticated,
            username=user.username,
            audiences=status.audiences,
            groups=user.groups,
            uid=user.uid,
            extra=user.extra,
        )

    async def may_on_tokens(
        self, who: TokenIdentity, verb: str, *, namespace: str, name: str = ""
    ) -> bool:
        """Ask whether they may do this to `sessions/token`; no namespace means in all."""
        spec = {
            "user": who.username,
            "uid": who.uid,
            "groups": who.groups,
            "extra": who.extra,
            "resourceAttributes": {
                "group": GROUP,
                "resource": "sessions",
                "subresource": "token",
                "verb": verb,
                "namespace": namespace,
                "name": name,
            },
        }
        answer = await self._ask("authorization.k8s.io", "SubjectAccessReview", spec)
        return msgspec.json.decode(answer, type=_AccessReview).status.allowed

    async def _ask(self, group: str, kind: str, spec: Mapping[str, object]) -> bytes:
        path = f"/apis/{group}/v1/{kind.lower()}s"
        body = {"apiVersion": f"{group}/v1", "kind": kind, "spec": spec}
        return await self._client.send("POST", path, body=body)


@dataclass(frozen=True, slots=True)
class _Known:
    """Whose token it is, believed until then; None for a token of nobody."""

    until: float
    identity: TokenIdentity | None


class BearerCheck:
    """Tells whose bearer token a request carries, with a cache keyed by the digest."""

    def __init__(
        self,
        reviews: KubeReviews,
        *,
        audience: str,
        cache: timedelta,
        monotonic: Callable[[], float],
    ) -> None:
        self._reviews = reviews
        self._audience = audience
        self._cache = cache
        self._monotonic = monotonic
        self._known: dict[bytes, _Known] = {}
        self._permits = asyncio.Semaphore(_REVIEWS_AT_ONCE)

    async def identify(self, authorization: str | None) -> TokenIdentity:
        """Return whose token it is.

        Raises Refused with reason UNAUTHENTICATED, and ApiUnavailable where an unknown
        token could not be judged.
        """
        token = bearer_token(authorization)
        if token is None:
            raise Refused("a bearer token is needed", reason=UNAUTHENTICATED)
        digest = hashlib.sha256(token.encode(errors="surrogateescape")).digest()
        known = self._recall(digest)
        if known is None:
            async with self._permits:
                known = self._recall(digest) or await self._review(token, digest)
        if known.identity is None:
            message = f"no valid token for audience {self._audience}"
            raise Refused(message, reason=UNAUTHENTICATED)
        return known.identity

    def _recall(self, digest: bytes) -> _Known | None:
        known = self._known.get(digest)
        return known if known is not None and self._monotonic() < known.until else None

    async def _review(self, token: str, digest: bytes) -> _Known:
        asked_at = self._monotonic()
        identity = await self._reviews.token(token, audience=self._audience)
        # An apiserver that checks no audience answers without one: the token may be
        # meant for anybody.
        good = identity.authenticated and self._audience in identity.audiences
        life = self._cache if good else min(self._cache, NEGATIVE_CACHE)
        known = _Known(asked_at + life.total_seconds(), identity if good else None)
        self._remember(digest, known)
        return known

    def _remember(self, digest: bytes, known: _Known) -> None:
        if len(self._known) >= _MOST_TOKENS:
            now = self._monotonic()
            good = {d: k for d, k in self._known.items() if k.identity and k.until > now}
            self._known = dict(list(good.items())[-_MOST_TOKENS // 2 :])
        self._known[digest] = known


def bearer_token(authorization: str | None) -> str | None:
    """Read the token out of an Authorization header; None if it holds none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
