"""One timer for all connections: a wheel of slots instead of a timer or task for each."""

from typing import Generic, TypeVar

T = TypeVar("T")


class TimerWheel(Generic[T]):
    """Holds things by when their time comes, to within one tick; a thing may be put often."""

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._slots: dict[int, list[T]] = {}
        self._turned_to: int | None = None

    def put(self, thing: T, at: float) -> None:
        """Have `advance` give it at the first tick not before `at`."""
        slot = int(at // self._tick) + 1
        if self._turned_to is not None:
            slot = max(slot, self._turned_to + 1)
        self._slots.setdefault(slot, []).append(thing)

    def advance(self, now: float) -> list[T]:
        """Take out everything whose time has come, earliest first."""
        to = int(now // self._tick)
        self._turned_to = to if self._turned_to is None else max(self._turned_to, to)
        due = sorted(slot for slot in self._slots if slot <= self._turned_to)
        return [thing for slot in due for thing in self._slots.pop(slot)]
