"""How a gateway goes: closed to newcomers, its connections sent away one by one."""

import asyncio
import random
from datetime import timedelta

import structlog

from gpusession.api.frames import CloseCode
from gpusession.gateway.departures import Departures
from gpusession.gateway.lease import GatewayLease
from gpusession.gateway.registry import ConnectionRegistry

SETTLE = timedelta(seconds=5)
"""For Redis to learn of the last ends; without it the lease runs out and says the same."""

log = structlog.get_logger(__name__)


async def drain(
    registry: ConnectionRegistry,
    *,
    departures: Departures,
    lease: GatewayLease,
    spread: timedelta,
) -> None:
    """Close every connection at a random time within `spread`, then give up the lease."""
    loop = asyncio.get_running_loop()
    log.info("gateway drains", connections=len(registry))
    if len(registry):
        for connection in registry:
            delay = random.uniform(0, spread.total_seconds())  # noqa: S311 - jitter
            loop.call_later(delay, connection.shut, CloseCode.RESTARTING, "reconnect with jitter")
        await asyncio.sleep(spread.total_seconds())
        registry.shut_all(CloseCode.RESTARTING, "reconnect with jitter")
    try:
        async with asyncio.timeout(SETTLE.total_seconds()):
            while len(registry):
                await asyncio.sleep(0.01)
            await departures.settled()
    except TimeoutError:
        log.warning("not all connections are known as ended", connections=len(registry))
    await lease.leave()
