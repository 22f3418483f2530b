"""Enters network namespaces, for callers that stay outside."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000


def inside(network: Path, call: Callable[[], T]) -> T:
    """Call something from inside a network namespace, in a thread of its own, as root."""

    def enter_and_call() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        with network.open("rb") as handle:
            if libc.setns(handle.fileno(), _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(network))
        return call()

    with ThreadPoolExecutor(1, thread_name_prefix="network") as thread:
        return thread.submit(enter_and_call).result()
