"""Every refusal has a status, a code and a reason."""

from datetime import timedelta

import pytest

from gpusession.api.frames import CloseCode, RefusalReason
from gpusession.errors import ApiUnavailable, GpuSessionError, Limited, Refused, StoreUnavailable
from gpusession.gateway import refusals
from gpusession.store.clients import Answer


def test_every_reason_has_a_status() -> None:
    """A new one cannot be forgotten."""
    assert set(refusals.STATUS) == set(RefusalReason)


@pytest.mark.parametrize("answer", [Answer.OK, Answer.RETURNED])
def test_a_client_that_was_heard_is_not_refused(answer: Answer) -> None:
    """Both are good news."""
    refusals.require(answer)


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (Answer.MISSING, 503, CloseCode.STORE_UNREACHABLE),
        (Answer.TOKEN_UNKNOWN, 401, CloseCode.TOKEN_REFUSED),
        (Answer.TOKEN_EXPIRED, 401, CloseCode.TOKEN_REFUSED),
        (Answer.REVOKED, 403, CloseCode.REVOKED),
        (Answer.ENDING, 410, CloseCode.ENDED),
    ],
)
def test_every_other_answer_is_said_in_its_own_way(
    answer: Answer, status: int, code: CloseCode
) -> None:
    """As docs/clients.md promises."""
    with pytest.raises((Refused, Limited)) as raised:
        refusals.require(answer)
    reason = refusals.reason_of(raised.value)

    assert (refusals.STATUS[reason], refusals.close_code_of(reason)) == (status, code)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Refused("no"), None),
        (StoreUnavailable("hangs"), "2"),
        (ApiUnavailable("busy", after=timedelta(seconds=7)), "7"),
        (Limited("many", reason="TooManyRequests", after=timedelta(seconds=0.3)), "1"),
    ],
)
def test_only_what_may_be_better_soon_says_when(
    error: GpuSessionError, seconds: str | None
) -> None:
    """A client must not knock for ever with a token that is no good."""
    assert refusals.retry_after(error).get("Retry-After") == seconds
