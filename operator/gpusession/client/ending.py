"""How a connection, or the attempt to make one, came to its end, and what that means.

Pure: the close codes of the gateway and the statuses before an upgrade become one word.
"""

from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus

from gpusession.api.frames import CloseCode, RefusalReason
from gpusession.client.errors import GaveUp, SessionEnded, SessionRevoked, WrongSession

ABNORMAL = 1006
"""RFC 6455: the connection went away without a close frame."""


@dataclass(frozen=True, slots=True)
class Ending:
    """One end: a close code (or what stands for it), the reason given, when to come back."""

    code: int
    reason: str = ""
    retry_after: timedelta | None = None


def refusal(status: int, *, reason: str = "", retry_after: str | None = None) -> Ending:
    """Read a HTTP answer that is no success as the close code that means the same."""
    pause = _seconds(retry_after)
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return Ending(CloseCode.TOKEN_REFUSED, reason or "Unauthorized")
        case HTTPStatus.FORBIDDEN if reason == RefusalReason.TOKEN_REVOKED:
            return Ending(CloseCode.REVOKED, reason)
        case HTTPStatus.FORBIDDEN:
            return Ending(CloseCode.WRONG_SESSION, reason or "Forbidden")
        case HTTPStatus.GONE:
            return Ending(CloseCode.ENDED, reason)
        case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.SERVICE_UNAVAILABLE:
            return Ending(CloseCode.STORE_UNREACHABLE, reason or f"HTTP {status}", pause)
        case _:
            return Ending(ABNORMAL, reason or f"HTTP {status}", pause)


def final(ending: Ending, *, session_reason: str = "") -> GaveUp | None:
    """Tell whether trying again is of no use; `session_reason` is why it ends, if known."""
    match ending.code:
        case CloseCode.ENDED:
            return SessionEnded(session_reason or ending.reason or "Unknown")
        case CloseCode.REVOKED:
            return SessionRevoked("Revoked")
        case CloseCode.WRONG_SESSION:
            return WrongSession(ending.reason or "WrongSession", "the gateway refused the token")
        case _:
            return None


def _seconds(retry_after: str | None) -> timedelta | None:
    if retry_after is None or not retry_after.strip().isdecimal():
        return None  # the other form, a date, would trust the clocks of two machines
    return timedelta(seconds=min(int(retry_after), 86400))
