"""The one task of a client: connects, beats, replaces the token, and connects anew."""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

from gpusession.api.frames import Activity, Beat, CloseCode, NewToken, Refresh
from gpusession.client.backoff import Backoff, Timing
from gpusession.client.calls import Calls
from gpusession.client.connection import Connection, LostError, RefusedError, dial
from gpusession.client.credentials import Credentials
from gpusession.client.ending import ABNORMAL, Ending, final
from gpusession.client.errors import GaveUp, SessionEnded
from gpusession.client.standing import Standing

log = logging.getLogger("gpusession.client")

_REFRESH_AT = 2 / 3
"""A token is replaced after this part of its life: 20 of 30 min, the rest for retries."""


class Keeper:
    """Keeps a Session connected; `run` ends only with a last word in the standing."""

    def __init__(
        self,
        standing: Standing,
        calls: Calls,
        credentials: Credentials,
        *,
        session: str | None,
        timing: Timing,
        chance: Callable[[], float],
    ) -> None:
        self._standing = standing
        self._calls = calls
        self._credentials = credentials
        self._session = session
        self._timing = timing
        self._chance = chance
        self._hurry = asyncio.Event()
        self._closing = False
        self._owed: float | None = None

    async def run(self) -> None:
        """Connect again and again until that is of no use."""
        backoff = Backoff(self._timing)
        loop = asyncio.get_running_loop()
        while self._standing.over is None:
            began = loop.time()
            try:
                ending = await self._one_life()
            except GaveUp as error:
                self._standing.finish(error)
                return
            except Exception as error:
                log.exception("the client went wrong and connects anew")
                ending = Ending(ABNORMAL, type(error).__name__)
            self._standing.last_ending = ending
            if (last_word := self._judge(ending)) is not None:
                self._standing.finish(last_word)
                return
            lived = timedelta(seconds=loop.time() - began)
            pause = backoff.pause(ending, lived=lived, chance=self._chance(), period=self._period())
            log.info("connecting anew in %.1f s: %s", pause.total_seconds(), ending)
            await self._rest(pause)

    def owe(self, until: float) -> None:
        """Report with the next beat an activity, busy until then, that reached no gateway."""
        self._owed = max(self._owed or until, until)

    def hurry_to_close(self) -> None:
        """Cut the present pause short, once: somebody wants to end the Session."""
        self._closing = True
        self._hurry.set()

    def _judge(self, ending: Ending) -> GaveUp | None:
        if self._closing and ending.code == CloseCode.DONE:
            return SessionEnded("ExplicitClose")
        pending = self._standing.pending
        return final(ending, session_reason=pending.reason if pending is not None else "")

    def _period(self) -> timedelta:
        facts = self._standing.facts
        return timedelta(seconds=facts.heartbeat_seconds if facts is not None else 0)

    async def _one_life(self) -> Ending:
        token = await self._credentials.token()
        if isinstance(token, Ending):
            return token
        opened = await dial(self._calls, token, self._session, self._timing)
        ending = await self._live(opened) if isinstance(opened, Connection) else opened
        if ending.code == CloseCode.TOKEN_REFUSED:
            self._credentials.refused(token)
        return ending

    async def _live(self, connection: Connection) -> Ending:
        self._standing.enter(connection)
        try:
            async with asyncio.TaskGroup() as tasks:
                beating = tasks.create_task(self._beat(connection))
                refreshing = tasks.create_task(self._refresh(connection))
                ending = await connection.read(self._standing.heard)
                beating.cancel()
                refreshing.cancel()
        finally:
            self._standing.drop(connection)
            await connection.leave()
        return ending

    async def _beat(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._standing.unproven or self._owed is not None:
                await self._one_beat(connection)
            while True:
                await self._until_due(connection, since=loop.time())
                await self._one_beat(connection)
        except LostError:
            return  # the reader sees the end, and tells how it came

    async def _until_due(self, connection: Connection, *, since: float) -> None:
        """Wait for a period from a moment on: the one that the last welcome tells."""
        while await connection.welcomed_anew(until=self._due(connection.period, since)):
            log.info("beats are due every %g s now", connection.period.total_seconds())

    def _due(self, period: timedelta, since: float) -> float | None:
        if not period:
            return None
        return since + self._timing.beat_after(period, chance=self._chance()).total_seconds()

    async def _one_beat(self, connection: Connection) -> None:
        owed = self._owed
        try:
            await connection.ask(Beat() if owed is None else busy_until(owed))
            if self._owed == owed:
                self._owed = None
        except RefusedError as error:
            log.warning("a beat was refused: %s", error)

    async def _refresh(self, connection: Connection) -> None:
        left = connection.welcome.token_expires_in_seconds
        try:
            while self._credentials.rotates:
                await asyncio.sleep(left * _REFRESH_AT)
                left = await self._one_refresh(connection, otherwise=left * (1 - _REFRESH_AT))
        except LostError:
            return  # the next welcome says how long the token has left

    async def _one_refresh(self, connection: Connection, *, otherwise: float) -> float:
        try:
            answer = await connection.ask(Refresh())
        except RefusedError as error:
            log.warning("the token was not replaced yet: %s", error)
            return max(otherwise, 1.0)
        if not isinstance(answer, NewToken):
            return max(otherwise, 1.0)
        self._credentials.rotated(answer.token)
        return answer.expires_in_seconds

    async def _rest(self, pause: timedelta) -> None:
        try:
            async with asyncio.timeout(pause.total_seconds()):
                await self._hurry.wait()
        except TimeoutError:
            return
        self._hurry.clear()


def busy_until(moment: float) -> Activity:
    """Give the frame of an activity whose busy lease ends at a moment of the loop's clock."""
    left = moment - asyncio.get_running_loop().time()
    return Activity(busy_seconds=max(left, 0.0))
