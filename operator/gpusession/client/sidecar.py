"""What `gpusession beat` does while it runs: beside a command, or until it is stopped."""

import asyncio
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from gpusession.client.child import Child
from gpusession.client.errors import ClientError, GatewayUnreachable, GaveUp, SessionEnded
from gpusession.client.session import Session
from gpusession.lifetime import stop_on_signals

log = logging.getLogger("gpusession.client")

_PERIOD_SECONDS = 30.0
"""Between two activities where the gateway expects no beats, or has not yet said so."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to do beside beating, and at the end."""

    activity: bool = False
    busy: bool = False
    close_on_exit: bool = False
    keep_command: bool = False


async def attend(session: Session, wishes: Wishes, command: Sequence[str]) -> int:
    """Beat while the command runs and give its exit code, or beat until stopped and give 0.

    Raises GaveUp where there is no command and the client gives up, and CannotStartError.
    """
    reports = []
    if wishes.activity:
        reports.append(asyncio.create_task(_stay_active(session)))
    if wishes.busy:
        reports.append(asyncio.create_task(_stay_busy(session)))
    try:
        if command:
            code = await _beside(session, command, keep=wishes.keep_command)
        else:
            code = await _until_stopped(session)
    finally:
        for report in reports:
            report.cancel()
    if wishes.close_on_exit:
        await _close(session)
    return code


async def _beside(session: Session, command: Sequence[str], *, keep: bool) -> int:
    child = Child(command)
    await child.start()
    watching = asyncio.create_task(_watch(session, child, keep=keep))
    try:
        return await child.exit_code()
    finally:
        watching.cancel()


async def _watch(session: Session, child: Child, *, keep: bool) -> None:
    try:
        reason = await session.ended()
    except GaveUp as error:
        log.error("the command goes on without a heartbeat: %s", error)
        return
    log.warning("the Session ends (%s)%s", reason, "" if keep else ": SIGTERM to the command")
    if not keep:
        child.signal(signal.SIGTERM)


async def _until_stopped(session: Session) -> int:
    stop = asyncio.Event()
    stop_on_signals(stop)
    ended = asyncio.create_task(session.ended())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if ended.done():
        raise SessionEnded(ended.result())
    ended.cancel()
    return 0


async def _stay_active(session: Session) -> None:
    while True:
        try:
            await session.activity()
        except GatewayUnreachable as error:
            log.warning("an activity waits for a gateway: %s", error)
        except GaveUp:
            return
        facts = session.facts
        await asyncio.sleep((facts and facts.heartbeat_seconds) or _PERIOD_SECONDS)


async def _stay_busy(session: Session) -> None:
    try:
        async with session.busy():
            await asyncio.Event().wait()
    except GaveUp:
        return


async def _close(session: Session) -> None:
    try:
        await session.close()
    except ClientError as error:
        log.warning("the Session was not closed, its disconnect grace runs: %s", error)
