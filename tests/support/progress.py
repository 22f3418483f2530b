"""Tells a person at a terminal what a slow step is doing and how long it has taken.

Writes to stderr only, one line at a time, so it reads the same in a terminal and in CI logs.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PERIOD_SECONDS = 10.0
"""Long enough to stay quiet on a warm machine, short enough that nobody thinks it hangs."""


def say(text: str) -> None:
    """Write one line to stderr at once."""
    print(f"[gpusession] {text}", file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, *, period: float = PERIOD_SECONDS) -> Iterator[None]:
    """Announce a step, its elapsed seconds every period, and how it ended."""
    began_at = time.monotonic()
    over = threading.Event()

    def tick() -> None:
        while not over.wait(period):
            say(f"{what}: {time.monotonic() - began_at:.0f} s")

    ticker = threading.Thread(target=tick, name="progress", daemon=True)
    say(f"{what} ...")
    ticker.start()
    ending = "failed after"
    try:
        yield
        ending = "done in"
    finally:
        over.set()
        ticker.join()
        say(f"{what}: {ending} {time.monotonic() - began_at:.1f} s")
