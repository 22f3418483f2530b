"""Whose token it is, asked without a sign of life: the gateway refuses before it moves anything."""

from dataclasses import dataclass
from datetime import datetime

from gpusession.api.session import RecordState
from gpusession.store import keys
from gpusession.store.client import RedisClient
from gpusession.store.clients import Answer
from gpusession.store.sessions import moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Whether a token is good, and of what Session; the rest is empty where it is not."""

    answer: Answer
    ns: str = ""
    name: str = ""
    user: str | None = None
    state: RecordState = RecordState.ACTIVE
    why: str | None = None
    """Why it is about to end, while it is pending."""
    until: datetime | None = None


class IdentityStore:
    """Looks at tokens and records; nothing here changes one."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def look(self, uid: str, digest: str) -> Look:
        """See whether a token is good; it slides no expiry and counts as no beat."""
        names = [keys.record(uid), keys.tokens(uid)]
        answer, *facts = await self._client.run("look", keys=names, args=[digest])
        if not facts:
            return Look(answer=Answer(answer.decode()))
        ns, name, user, state, why = (fact.decode() for fact in facts[:5])
        until = int(facts[5])
        return Look(
            answer=Answer(answer.decode()),
            ns=ns,
            name=name,
            user=user or None,
            state=RecordState(state),
            why=why or None,
            until=moment(until) if until else None,
        )

    async def is_rebuilt(self) -> bool:
        """Tell whether Redis has every record, as far as the controller knows.

        False from a loss of data on until all have been made anew.
        """
        return bool(await self._client.run("rebuilt", keys=[keys.TICK], args=[]))
