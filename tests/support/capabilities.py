"""Takes capabilities from this thread for a while, so that it may do what an agent's Pod may.

The kernel looks at the effective set alone, and each thread has one of its own. Threads that
are started meanwhile keep what they were born with.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

CAP_KILL = 5
"""Number of the one capability that the shipped agent has."""

_VERSION_3 = 0x20080522
"""Of capget(2): two words of 32 capabilities for each set."""

_LIBC = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def may_drop() -> bool:
    """Tell whether we are uid 0 with a capability to lose: else a drop would show nothing."""
    return os.geteuid() == 0 and bool(_sets()[0].permitted & 1 << CAP_KILL)


@contextmanager
def only(*kept: int) -> Iterator[None]:
    """Keep these capabilities effective, of the first 32, and no others."""
    before = _sets()
    try:
        fewer = _sets()
        fewer[0].effective = sum(1 << number for number in kept)
        fewer[1].effective = 0
        _call("capset", fewer)
        yield
    finally:
        _call("capset", before)


def _sets() -> "ctypes.Array[_Word]":
    words = (_Word * 2)()
    _call("capget", words)
    return words


def _call(name: str, words: "ctypes.Array[_Word]") -> None:
    if getattr(_LIBC, name)(ctypes.byref(_Header(_VERSION_3, 0)), words):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
