"""What clients do to the records, as the gateways bring it: beats, connections, tokens.

Every method answers; none raises for what a client said. A token is known here only by the
digest of its text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from gpusession.api.session import RecordState
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.sessions import KEEP, PAGE, milliseconds, moment, revoke

HEALING = timedelta(seconds=90)
"""After a loss of data: time for clients to come by the gateway that knows their token.

A heartbeat threshold, where that is longer.
"""

TOKEN_LIFE = timedelta(minutes=30)
"""From its last use; a beat moves it on once less than 25 minutes are left (parts/tokens.lua)."""


class Answer(StrEnum):
    """What became of a client's word."""

    OK = "ok"
    RETURNED = "returned"
    """It also called off an end that had begun."""
    MISSING = "missing"
    """There is no record, or none that is whole; the controller will make one."""
    TOKEN_UNKNOWN = "token_unknown"  # noqa: S105 - an answer, no secret
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    REVOKED = "revoked"
    ENDING = "ending"
    """The Session is being ended or has ended: nothing calls that off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """What a client learns when it connects."""

    ns: str
    name: str
    per: timedelta
    """0: no heartbeat is expected."""
    token_lasts: timedelta
    state: RecordState
    why: str | None
    """Why it is about to end, while it is pending."""
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a wish for a token, and how long from now the token lasts."""

    answer: Answer
    lasts: timedelta


class ClientStore:
    """The records as clients move them. Nothing here makes a record."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def beats(self, batch: Sequence[tuple[str, str]], gateway: str) -> list[Answer]:
        """Take beats, each by uid and token digest; one call to the server per 200."""
        answers: list[Answer] = []
        for start in range(0, len(batch), PAGE):
            names, args = [keys.EVENTS, keys.DEADLINES], [gateway]
            for uid, digest in batch[start : start + PAGE]:
                names += (keys.record(uid), keys.tokens(uid))
                args += (uid, digest)
            page = await self._client.run("beats", keys=names, args=args)
            answers += [_ANSWERS[answer] for answer in page]
        return answers

    async def activity(self, uid: str, digest: str, gateway: str, busy: timedelta) -> Answer:
        """Take a beat that counts as use; `busy` announces so much use without another word.

        It also calls off a pending end for being idle.
        """
        names = [keys.EVENTS, keys.DEADLINES, keys.record(uid), keys.tokens(uid)]
        args = (gateway, uid, digest, milliseconds(busy))
        return _ANSWERS[await self._client.run("activity", keys=names, args=args)]

    async def connect(
        self, uid: str, digest: str, gateway: str, number: str
    ) -> tuple[Answer, Welcome | None]:
        """Take a beat and count a connection, which has this number at the gateway.

        None where the answer is neither OK nor RETURNED: then nothing was counted. May be
        repeated; whoever got no answer ends it by `disconnect` as if it were counted.
        """
        names = [keys.EVENTS, keys.DEADLINES, keys.record(uid), keys.tokens(uid)]
        args = (gateway, number, uid, digest, milliseconds(KEEP))
        answer, *facts = await self._client.run(
            "connect", keys=[*names, keys.gateway(gateway)], args=args
        )
        return _ANSWERS[answer], _welcome(*facts) if facts else None

    async def disconnect(self, uid: str, gateway: str, number: str, *, evidence: bool) -> Answer:
        """Count a connection no more; OK or MISSING.

        The Session counts as left by its last client only on `evidence`: the gateway, itself
        not cut off, saw that connection end, and no gateway has another. Else it counts as
        just heard. May be repeated until there is an answer.
        """
        names = [keys.EVENTS, keys.DEADLINES, keys.record(uid)]
        answer = await self._client.run(
            "disconnect",
            keys=[*names, keys.GATEWAYS, keys.gateway(gateway)],
            args=(gateway, number, uid, int(evidence)),
        )
        return _ANSWERS[answer]

    async def close(self, uid: str, digest: str) -> Answer:
        """Note that a client wishes the end; OK says that the wish is safe in Redis."""
        names = [keys.EVENTS, keys.DEADLINES, keys.record(uid), keys.tokens(uid)]
        return _ANSWERS[await self._client.run("close", keys=names, args=(uid, digest))]

    async def mint(self, uid: str, digest: str, ttl: timedelta) -> Grant:
        """Let a new token in, for `ttl` but never beyond the cap."""
        names, args = [keys.record(uid), keys.tokens(uid)], (digest, milliseconds(ttl))
        return _grant(await self._client.run("mint", keys=names, args=args))

    async def refresh(self, uid: str, old_digest: str, new_digest: str) -> Grant:
        """Let a new token in for an old one, which is good for 60 s more and slides no longer.

        All gateways are told.
        """
        names = [keys.record(uid), keys.tokens(uid), keys.EVENTS]
        return _grant(
            await self._client.run("refresh", keys=names, args=(uid, old_digest, new_digest))
        )

    async def heal(
        self, uid: str, digest: str, *, expires_in: timedelta, verified_ago: timedelta
    ) -> Answer:
        """Put back a token that Redis has lost since it was verified.

        `verified_ago` counts from the arrival of that answer, by the caller's own steady clock.
        TOKEN_UNKNOWN where neither the record nor the server's present life is younger: then
        nothing was lost, and the token is not good.
        """
        args = (digest, milliseconds(expires_in), milliseconds(verified_ago))
        names = [keys.record(uid), keys.tokens(uid), keys.TICK]
        return _ANSWERS[await self._client.run("heal", keys=names, args=args)]

    async def knock(self, uid: str) -> bool:
        """Hear somebody who came with a token that is not known.

        True where data was lost so lately that the token may have been lost with it, and
        another gateway may still have it put back: the Session counts as doubted then. Also
        where there is no record, which proves nothing. False leaves no trace.
        """
        names, args = [keys.record(uid), keys.TICK], [milliseconds(HEALING)]
        return bool(await self._client.run("knock", keys=names, args=args))

    async def find(self, namespace: str, name: str) -> str | None:
        """Give the uid of the Session of that name; None proves nothing."""
        uid: bytes | None = await self._client.call("GET", keys.name(namespace, name))
        return uid.decode() if uid is not None else None

    async def of_user(self, user: str, namespace: str | None) -> list[str]:
        """Give the uids of a user's Sessions, in one namespace or in all."""
        found: set[bytes] = set()
        cursor = b"0"
        while True:
            cursor, members = await self._client.call(
                "SSCAN", keys.user(user), cursor, "COUNT", PAGE
            )
            for start in range(0, len(members), PAGE):
                uids = [member.decode() for member in members[start : start + PAGE]]
                names = [keys.user(user), *map(keys.record, uids)]
                args = (user, namespace or "", *uids)
                found.update(await self._client.run("of_user", keys=names, args=args))
            if cursor == b"0":
                return sorted(uid.decode() for uid in found)

    async def revoke(self, uid: str) -> bool:
        """Take every token away for good; False if there is no record."""
        return await revoke(self._client, uid)


_ANSWERS = {answer.value.encode(): answer for answer in Answer}


def _grant(told: tuple[bytes, int]) -> Grant:
    answer, lasts = told
    return Grant(_ANSWERS[answer], timedelta(milliseconds=lasts))


def _welcome(*facts: bytes | int) -> Welcome:
    ns, name, per, lasts, state, why, until = facts
    return Welcome(
        ns=_text(ns),
        name=_text(name),
        per=timedelta(milliseconds=int(per)),
        token_lasts=timedelta(milliseconds=int(lasts)),
        state=RecordState(_text(state)),
        why=_text(why) or None,
        until=moment(int(until)) if until else None,
    )


def _text(value: bytes | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
