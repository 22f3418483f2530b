"""How a process learns that it is to stop; what it does then is its own affair."""

import asyncio
import signal


def stop_on_signals(stop: asyncio.Event) -> None:
    """Have SIGTERM and SIGINT set an event, and nothing else."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def first_of(event: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Return when the event is set or the task has ended, whichever is first."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
