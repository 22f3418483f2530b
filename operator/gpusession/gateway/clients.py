"""What a client's word does in Redis, and what is done when Redis does not know its token.

Redis may have been emptied and the record rebuilt. A token that this gateway has seen
verified before is put back then; any other one is knocked with and refused, but for a
while not for good: another gateway may know it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from operator import attrgetter, itemgetter
from typing import TypeVar

import structlog

from gpusession import tokens
from gpusession.errors import StoreUnavailable
from gpusession.gateway import refusals
from gpusession.gateway.coalescer import BeatCoalescer
from gpusession.gateway.lease import GatewayLease
from gpusession.gateway.verified import VerifiedTokens
from gpusession.store.clients import TOKEN_LIFE, Answer, ClientStore, Welcome
from gpusession.store.identities import IdentityStore, Look
from gpusession.tokens import Presented, Token

T = TypeVar("T")

GOOD = frozenset({Answer.OK, Answer.RETURNED})

HEALABLE = frozenset({Answer.TOKEN_UNKNOWN, Answer.TOKEN_EXPIRED})
"""Redis may have lost it, or its clock may have jumped: this gateway's own memory tells."""

log = structlog.get_logger(__name__)


class Clients:
    """The verbs of a client with a Session token.

    All raise StoreUnavailable, within `answer_timeout`.
    """

    def __init__(
        self,
        store: ClientStore,
        *,
        identities: IdentityStore,
        coalescer: BeatCoalescer,
        verified: VerifiedTokens,
        lease: GatewayLease,
        is_gone: Callable[[str], bool],
        answer_timeout: timedelta,
    ) -> None:
        self._store = store
        self._identities = identities
        self._coalescer = coalescer
        self._verified = verified
        self._lease = lease
        self._is_gone = is_gone
        self._answer_timeout = answer_timeout

    def require(self, who: Presented, answer: Answer) -> None:
        """Return for a client that was heard; raise what is to be said to any other.

        A record that is missing is being rebuilt, unless its Session is known to be over.
        """
        is_over = answer is Answer.MISSING and self._is_gone(who.uid)
        refusals.require(Answer.ENDING if is_over else answer)

    async def look(self, who: Presented) -> Look:
        """See whether the token is good, and whose it is; it counts for nothing."""
        return await self._try(who, lambda: self._identities.look(*who), attrgetter("answer"))

    async def beat(self, who: Presented) -> Answer:
        """Bring a beat. The way of nearly all of them is kept short: it is what a core does."""
        answer = await self._coalescer.beat(who)
        if answer in GOOD:
            self._verified.note(who)
            return answer
        return await self._try(who, lambda: self._coalescer.beat(who), _itself)

    async def activity(self, who: Presented, busy: timedelta) -> Answer:
        """Bring a beat that counts as use, and as `busy` for so long ahead."""
        return await self._try(
            who, lambda: self._store.activity(*who, self._lease.id, busy), _itself
        )

    async def connect(
        self, who: Presented, gateway: str, number: str
    ) -> tuple[Answer, Welcome | None]:
        """Count a connection under this id; without a welcome, or an error, it is not counted."""
        return await self._try(
            who, lambda: self._store.connect(*who, gateway, number), itemgetter(0)
        )

    async def close(self, who: Presented) -> Answer:
        """Bring the wish that the Session ends."""
        return await self._try(who, lambda: self._store.close(*who), _itself)

    async def mint(self, uid: str) -> tuple[Answer, Token, timedelta]:
        """Give a further token of a Session and how long it lasts; it is good only with OK."""
        fresh = tokens.mint(uid)
        grant = await self._store.mint(uid, fresh.digest, TOKEN_LIFE)
        if grant.answer is Answer.OK:
            # Redis may lose it before its client has shown it to anybody.
            self._verified.note(Presented(uid, fresh.digest))
        return grant.answer, fresh, grant.lasts

    async def refresh(self, who: Presented) -> tuple[Answer, Token, timedelta]:
        """Give another token and how long it lasts; it is good only with OK."""
        fresh = tokens.mint(who.uid)
        grant = await self._try(
            who, lambda: self._store.refresh(*who, fresh.digest), attrgetter("answer")
        )
        if grant.answer is Answer.OK:
            self._verified.rotate(who)
            self._verified.note(Presented(who.uid, fresh.digest))
        return grant.answer, fresh, grant.lasts

    async def _try(
        self, who: Presented, act: Callable[[], Awaitable[T]], answer_of: Callable[[T], Answer]
    ) -> T:
        async with self.in_time():
            result = await act()
            if answer_of(result) in HEALABLE and await self._is_healed(who):
                result = await act()
            await self._note(who, answer_of(result))
        return result

    async def _is_healed(self, who: Presented) -> bool:
        memory = self._verified.recall(who)
        if memory is None:
            return False
        # Redis reads its clock when it gets to this call, up to a whole timeout from now. Without
        # that on top, a record rebuilt just after the verification would pass for the older one.
        ago = memory.ago + self._answer_timeout
        answer = await self._store.heal(*who, expires_in=memory.lasts, verified_ago=ago)
        log.info("token put back", uid=who.uid, answer=answer)
        return answer is Answer.OK

    async def _note(self, who: Presented, answer: Answer) -> None:
        match answer:
            case Answer.OK | Answer.RETURNED:
                self._verified.note(who)
            case Answer.REVOKED:
                self._verified.forget(who.uid)
            case Answer.TOKEN_UNKNOWN:
                await self._knock(who)
            case _:
                pass

    async def _knock(self, who: Presented) -> None:
        if await self._store.knock(who.uid):
            raise StoreUnavailable("Redis has lost data; another gateway may know this token")

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Give the block as a whole no longer than a single verb; raises StoreUnavailable."""
        seconds = self._answer_timeout.total_seconds()
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise StoreUnavailable(f"Redis gave no answer within {seconds:g} s") from error


def _itself(answer: Answer) -> Answer:
    return answer
