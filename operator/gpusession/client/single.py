"""One beat by HTTP, for scripts and cron: no connection, so no disconnect afterwards."""

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta

from gpusession.api.frames import ActivityRequest, CloseCode, SessionAnswer
from gpusession.client.backoff import Backoff, Timing
from gpusession.client.calls import Calls
from gpusession.client.credentials import Credentials
from gpusession.client.ending import Ending, final
from gpusession.client.errors import GatewayUnreachable


class Single:
    """Makes single calls for a Session; each is repeated for the timing's patience."""

    def __init__(
        self,
        calls: Calls,
        credentials: Credentials,
        *,
        session: str | None,
        timing: Timing,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._calls = calls
        self._credentials = credentials
        self._session = session
        self._timing = timing
        self._chance = chance

    async def beat(self) -> SessionAnswer:
        """Say that the client lives; raises GatewayUnreachable or GaveUp, as the others do."""
        return await self._repeat("/v1/heartbeat")

    async def activity(self, busy: timedelta = timedelta()) -> SessionAnswer:
        """Report an activity, with a busy lease if one is given."""
        body = ActivityRequest(busy_seconds=busy.total_seconds())
        return await self._repeat("/v1/activity", body)

    async def close(self) -> SessionAnswer:
        """End the Session."""
        return await self._repeat("/v1/close")

    async def _repeat(self, path: str, body: ActivityRequest | None = None) -> SessionAnswer:
        backoff = Backoff(self._timing)
        last = ""
        try:
            async with asyncio.timeout(self._timing.patience.total_seconds()):
                while True:
                    answer = await self._once(path, body)
                    if isinstance(answer, SessionAnswer):
                        return answer
                    if (error := final(answer)) is not None:
                        raise error
                    last = answer.reason
                    pause = backoff.pause(answer, lived=timedelta(), chance=self._chance())
                    await asyncio.sleep(pause.total_seconds())
        except TimeoutError as error:
            raise GatewayUnreachable(f"no gateway in time; the last said: {last}") from error

    async def _once(self, path: str, body: ActivityRequest | None) -> SessionAnswer | Ending:
        token = await self._credentials.token()
        if isinstance(token, Ending):
            return token
        answer = await self._calls.post(
            path, SessionAnswer, bearer=token, body=body, session=self._session
        )
        if isinstance(answer, Ending) and answer.code == CloseCode.TOKEN_REFUSED:
            self._credentials.refused(token)
        return answer
