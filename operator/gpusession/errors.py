"""Every error that crosses a module boundary, cut by what the caller does next.

GpuSessionError
├── Retry               the same call may succeed later; nothing is lost by waiting
│   ├── ApiUnavailable      kube-apiserver: no answer, 429, 5xx
│   ├── AgentUnavailable    a node agent gave no usable answer
│   ├── StoreUnavailable    Redis gave no usable answer
│   └── Limited             a limit of ours is reached; `after` says when to come again
├── Stale               the object has moved on: look again, then decide again
├── Refused             the other side understood and said no; repeating will not help
│   ├── KeyRefused          a Redis key outside the Session's own names
│   └── StaleLeader         an agent has had orders of a later leader
├── NotWatching         no news comes in: end, a new start lists and watches anew
├── Deposed             another process leads: stop at once, without a last word
└── Misconfigured       this process cannot work as set up: say why and exit

An outcome that is expected (a verdict, a refused bind) is a return value, not an error.
"""

from datetime import timedelta


class GpuSessionError(Exception):
    """The root, for a last-resort handler."""


class Retry(GpuSessionError):  # noqa: N818 - named by what the caller does
    """Try again, not before `after` where the other side asked for that."""

    def __init__(self, message: str, *, after: timedelta | None = None) -> None:
        super().__init__(message)
        self.after = after


class ApiUnavailable(Retry):
    """kube-apiserver did not answer, or answered 429 or 5xx."""


class AgentUnavailable(Retry):
    """The node's agent could not be found, reached, or understood."""


class StoreUnavailable(Retry):
    """Redis could not be reached or could not serve the command."""


class Limited(Retry):
    """Too many at once or in a while; `reason` is a word to branch on."""

    def __init__(self, message: str, *, reason: str, after: timedelta) -> None:
        super().__init__(message, after=after)
        self.reason = reason


class Stale(GpuSessionError):  # noqa: N818 - named by what the caller does
    """A precondition on uid, version or list position failed: observe again."""


class Refused(GpuSessionError):  # noqa: N818 - named by what the caller does
    """A clear no (400, 403, 422); `reason` is a word to branch on."""

    def __init__(self, message: str, *, reason: str = "Refused") -> None:
        super().__init__(message)
        self.reason = reason


class KeyRefused(Refused):
    """A Redis key, index entry or prefix that is not the Session's own."""


class StaleLeader(Refused):
    """An agent knows a higher leader epoch than the caller's; `known` is that epoch."""

    def __init__(self, message: str, *, known: int) -> None:
        super().__init__(message, reason="StaleLeader")
        self.known = known


class NotWatching(GpuSessionError):  # noqa: N818 - named by what is the matter
    """The watch of Sessions was not opened, or is over for good."""


class Deposed(GpuSessionError):  # noqa: N818 - named by what has happened
    """This process is no longer the one that leads; whatever it began others will end."""


class Misconfigured(GpuSessionError):  # noqa: N818 - named by what the caller does
    """Settings or surroundings under which the process must not run."""
