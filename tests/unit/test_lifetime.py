"""A process hears that it is to stop, and waits for the first of two things."""

import asyncio
import os
import signal

import pytest

from gpusession.lifetime import first_of, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_sets_the_event_and_nothing_else(number: signal.Signals) -> None:
    """The process lives on and may drain."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    stop_on_signals(stop)

    os.kill(os.getpid(), number)
    await stop.wait()

    for each in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(each)


async def test_whichever_is_first_ends_the_wait() -> None:
    """An event that is set, or a task that has ended."""
    event, never = asyncio.Event(), asyncio.create_task(asyncio.Event().wait())
    done = asyncio.create_task(asyncio.sleep(0))

    await first_of(event, done)
    event.set()
    await first_of(event, never)

    assert (done.done(), never.done()) == (True, False)
    never.cancel()
