"""The workqueue contract of client-go, with priorities, appointments and growing pauses."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from gpusession.controller.queue import DestroyQueue, Priority

SOON, LATER, NEVER = timedelta(milliseconds=2), timedelta(milliseconds=8), timedelta(hours=1)
BASE, CAP = timedelta(seconds=1), timedelta(seconds=30)

EXPLICIT, IDLE, RESYNC = Priority.EXPLICIT, Priority.IDLE, Priority.RESYNC


@pytest.fixture
async def queue() -> AsyncIterator[DestroyQueue]:
    """Give an empty queue whose pauses are not shortened by chance."""
    queue = DestroyQueue(retry_base=BASE, retry_cap=CAP, jitter=lambda: 1.0)
    yield queue
    queue.close()


async def is_silent(queue: DestroyQueue) -> bool:
    """Tell whether a worker that asks now has to wait."""
    asking = asyncio.create_task(queue.get())
    for _ in range(3):
        await asyncio.sleep(0)
    waits = not asking.done()
    asking.cancel()
    return waits


async def take(queue: DestroyQueue, count: int) -> list[str]:
    """Take and give back so many keys."""
    keys = []
    for _ in range(count):
        key, _ = await queue.get()
        queue.done(key)
        keys.append(key)
    return keys


async def test_key_that_waits_is_there_once(queue: DestroyQueue) -> None:
    """Ten wake-ups before its turn are one look."""
    for _ in range(10):
        queue.add("a", EXPLICIT)

    assert await take(queue, 1) == ["a"]
    assert await is_silent(queue)


async def test_key_is_never_with_two_workers(queue: DestroyQueue) -> None:
    """A key that is added while it is worked on is handed to nobody else."""
    queue.add("a", EXPLICIT)
    await queue.get()

    queue.add("a", EXPLICIT)

    assert await is_silent(queue)


async def test_key_added_while_worked_on_comes_once_more(queue: DestroyQueue) -> None:
    """News during the work is not lost, and is not doubled."""
    queue.add("a", EXPLICIT)
    key, _ = await queue.get()
    for priority in (RESYNC, IDLE, RESYNC):
        queue.add(key, priority)

    queue.done(key)

    assert await queue.get() == ("a", IDLE)
    queue.done("a")
    assert await is_silent(queue)


async def test_key_that_is_given_back_without_news_is_gone(queue: DestroyQueue) -> None:
    """Done is the end of it."""
    queue.add("a", EXPLICIT)

    await take(queue, 1)

    assert await is_silent(queue)


async def test_many_workers_share_the_keys_and_never_one_key(queue: DestroyQueue) -> None:
    """Under load each key has one worker at a time, and none is forgotten."""
    busy: Counter[str] = Counter()
    seen: set[str] = set()

    async def work() -> None:
        while True:
            key, _ = await queue.get()
            busy[key] += 1
            assert busy[key] == 1
            await asyncio.sleep(0)
            busy[key] -= 1
            seen.add(key)
            queue.done(key)

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(work()) for _ in range(4)]
        for number in range(200):
            queue.add(f"key-{number % 7}", Priority(number % 5))
            await asyncio.sleep(0)
        queue.shut()
        await queue.drained()
        for worker in workers:
            worker.cancel()
    assert len(seen) == 7


async def test_urgent_keys_come_first(queue: DestroyQueue) -> None:
    """An explicit end overtakes a resync."""
    queue.add("resync", RESYNC)
    queue.add("idle", IDLE)
    queue.add("explicit", EXPLICIT)

    assert await take(queue, 3) == ["explicit", "idle", "resync"]


async def test_oldest_comes_first_within_a_priority(queue: DestroyQueue) -> None:
    """Nobody is overtaken by an equal."""
    for key in ("b", "a", "c"):
        queue.add(key, IDLE)

    assert await take(queue, 3) == ["b", "a", "c"]


async def test_more_urgent_reason_moves_a_key_ahead(queue: DestroyQueue) -> None:
    """A waiting key takes the better of its places, and only that one."""
    queue.add("a", RESYNC)
    queue.add("b", IDLE)

    queue.add("a", EXPLICIT)

    assert await take(queue, 2) == ["a", "b"]
    assert await is_silent(queue)


async def test_place_that_was_given_up_is_not_taken_later(queue: DestroyQueue) -> None:
    """A key that comes again waits as its new reason says, not as an old one did."""
    queue.add("a", IDLE)
    queue.add("a", EXPLICIT)
    await take(queue, 1)

    queue.add("a", RESYNC)

    assert await queue.get() == ("a", RESYNC)


async def test_less_urgent_reason_does_not_move_a_key_back(queue: DestroyQueue) -> None:
    """A resync does not delay an explicit end."""
    queue.add("a", EXPLICIT)

    queue.add("a", RESYNC)

    assert await queue.get() == ("a", EXPLICIT)


async def test_key_waits_for_its_appointment(queue: DestroyQueue) -> None:
    """It is not ready before, and is afterwards."""
    queue.add_after("a", IDLE, SOON)

    assert await is_silent(queue)
    assert await queue.get() == ("a", IDLE)


@pytest.mark.parametrize(
    "delays", [(SOON, NEVER), (NEVER, SOON)], ids=["sooner first", "later first"]
)
async def test_sooner_appointment_stands(
    queue: DestroyQueue, delays: tuple[timedelta, timedelta]
) -> None:
    """Of two appointments the sooner one counts, and the other is off."""
    for delay in delays:
        queue.add_after("a", IDLE, delay)

    assert await take(queue, 1) == ["a"]


async def test_news_cancels_an_appointment(queue: DestroyQueue) -> None:
    """What is looked at now need not be looked at again later."""
    queue.add_after("a", IDLE, SOON)

    queue.add("a", EXPLICIT)

    assert await take(queue, 1) == ["a"]
    await asyncio.sleep(LATER.total_seconds())
    assert await is_silent(queue)


async def test_pause_doubles_up_to_its_cap(queue: DestroyQueue) -> None:
    """1, 2, 4, 8, 16 and then 30 s, however often it fails."""
    pauses = [queue.retry("a", IDLE).total_seconds() for _ in range(30)]

    assert pauses == [1, 2, 4, 8, 16, *[30] * 25]


async def test_pause_starts_over_once_forgotten(queue: DestroyQueue) -> None:
    """A success wipes the slate clean, for its own key only."""
    for key in ("a", "a", "b", "b"):
        queue.retry(key, IDLE)

    queue.forget("a")

    assert (queue.retry("a", IDLE), queue.retry("b", IDLE)) == (BASE, 4 * BASE)


async def test_wake_up_does_not_shorten_later_pauses(queue: DestroyQueue) -> None:
    """News brings a key back at once, but what fails on keeps its growing pause."""
    queue.retry("a", IDLE)
    queue.add("a", EXPLICIT)
    await take(queue, 1)

    assert queue.retry("a", IDLE) == 2 * BASE


async def test_other_side_may_ask_for_a_longer_pause(queue: DestroyQueue) -> None:
    """Retry-After is obeyed where it is longer, even beyond the cap."""
    assert queue.retry("a", IDLE, at_least=2 * CAP) == 2 * CAP
    assert queue.retry("a", IDLE, at_least=SOON) == 2 * BASE


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
async def test_chance_spreads_a_pause_over_its_upper_half(chance: float, share: float) -> None:
    """Keys that failed together do not return together, and none returns at once."""
    queue = DestroyQueue(retry_base=BASE, retry_cap=CAP, jitter=lambda: chance)

    assert queue.retry("a", IDLE) == BASE * share
    queue.close()


async def test_shut_queue_hands_out_nothing(queue: DestroyQueue) -> None:
    """Ready keys stay for the next leader."""
    queue.add("a", EXPLICIT)

    queue.shut()

    assert await is_silent(queue)


async def test_drained_waits_for_the_work_in_hand(queue: DestroyQueue) -> None:
    """It is over when the last key is given back, not before."""
    queue.add("a", EXPLICIT)
    key, _ = await queue.get()
    queue.shut()
    draining = asyncio.create_task(queue.drained())
    await asyncio.sleep(0)
    assert not draining.done()

    queue.done(key)

    await asyncio.wait_for(draining, 1)


async def test_drained_is_immediate_where_nobody_works(queue: DestroyQueue) -> None:
    """Keys that only wait are nobody's work."""
    queue.add("a", EXPLICIT)
    queue.shut()

    await asyncio.wait_for(queue.drained(), 1)


async def test_closed_queue_keeps_no_appointment(queue: DestroyQueue) -> None:
    """No timer outlives the queue."""
    queue.add_after("a", IDLE, SOON)

    queue.close()

    await asyncio.sleep(LATER.total_seconds())
    assert await is_silent(queue)


async def test_worker_that_gives_up_waiting_takes_no_key_with_it(queue: DestroyQueue) -> None:
    """A cancelled get leaves the next key for the next worker."""
    assert await is_silent(queue)

    queue.add("a", EXPLICIT)

    assert await take(queue, 1) == ["a"]
