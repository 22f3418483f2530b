"""What an end means: come back, or stop for good."""

from datetime import timedelta

import pytest

from gpusession.client.ending import Ending, final, refusal
from gpusession.client.errors import GaveUp, SessionEnded, SessionRevoked, WrongSession


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (401, "TokenUnknown", 4401),
        (403, "TokenRevoked", 4409),
        (403, "WrongSession", 4403),
        (410, "SessionEnding", 4410),
        (429, "", 1013),
        (503, "RecordMissing", 1013),
        (500, "", 1006),
        (404, "NotFound", 1006),
        (302, "", 1006),
    ],
)
def test_status_means_what_its_close_code_means(status: int, reason: str, code: int) -> None:
    """One table for what comes before an upgrade, after it, and without one."""
    assert refusal(status, reason=reason).code == code


@pytest.mark.parametrize(
    ("text", "pause"),
    [
        ("7", timedelta(seconds=7)),
        (" 7 ", timedelta(seconds=7)),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("-1", None),
        ("9" * 400, timedelta(days=1)),
        (None, None),
    ],
    ids=["seconds", "with spaces", "a date", "negative", "absurd", "absent"],
)
def test_retry_after_is_read_as_seconds(text: str | None, pause: timedelta | None) -> None:
    """Nothing that a server writes there breaks a client."""
    assert refusal(503, retry_after=text).retry_after == pause


@pytest.mark.parametrize(
    ("code", "error"), [(4403, WrongSession), (4409, SessionRevoked), (4410, SessionEnded)]
)
def test_ends_that_are_final(code: int, error: type[GaveUp]) -> None:
    """Each has its own class."""
    assert type(final(Ending(code))) is error


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1009, 1012, 1013, 4400, 4401, 4408, 4999])
def test_ends_that_are_not_final(code: int) -> None:
    """4401 depends on whether there is another token; unknown codes prove nothing."""
    assert final(Ending(code)) is None


def test_session_s_own_reason_wins_over_that_of_the_close() -> None:
    """Idle says more than SessionEnding."""
    error = final(Ending(4410, "SessionEnding"), session_reason="Idle")

    assert isinstance(error, SessionEnded)
    assert error.reason == "Idle"
