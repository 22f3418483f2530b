"""How each refusal is said: as an HTTP status, as a close code, with which reason."""

from datetime import timedelta
from http import HTTPStatus

from gpusession.api.frames import CloseCode, RefusalReason
from gpusession.errors import (
    ApiUnavailable,
    GpuSessionError,
    Limited,
    Refused,
    Retry,
    StoreUnavailable,
)
from gpusession.rules.admission import seconds_to_wait
from gpusession.store.clients import Answer

RETRY = timedelta(seconds=2)
"""Retry-After where nobody knows better: the controller rebuilds a record within seconds."""

STATUS = {
    RefusalReason.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    RefusalReason.TOKEN_IN_URL: HTTPStatus.BAD_REQUEST,
    RefusalReason.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    RefusalReason.TOKEN_UNKNOWN: HTTPStatus.UNAUTHORIZED,
    RefusalReason.TOKEN_EXPIRED: HTTPStatus.UNAUTHORIZED,
    RefusalReason.TOKEN_REVOKED: HTTPStatus.FORBIDDEN,
    RefusalReason.WRONG_SESSION: HTTPStatus.FORBIDDEN,
    RefusalReason.FORBIDDEN: HTTPStatus.FORBIDDEN,
    RefusalReason.ORIGIN_REFUSED: HTTPStatus.FORBIDDEN,
    RefusalReason.NOT_FOUND: HTTPStatus.NOT_FOUND,
    RefusalReason.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    RefusalReason.SLOW_REQUEST: HTTPStatus.REQUEST_TIMEOUT,
    RefusalReason.SESSION_ENDING: HTTPStatus.GONE,
    RefusalReason.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    RefusalReason.TOO_MANY_REQUESTS: HTTPStatus.TOO_MANY_REQUESTS,
    RefusalReason.TOO_MANY_CONNECTIONS: HTTPStatus.TOO_MANY_REQUESTS,
    RefusalReason.INTERNAL_ERROR: HTTPStatus.INTERNAL_SERVER_ERROR,
    RefusalReason.RECORD_MISSING: HTTPStatus.SERVICE_UNAVAILABLE,
    RefusalReason.STORE_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    RefusalReason.KUBERNETES_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    RefusalReason.DRAINING: HTTPStatus.SERVICE_UNAVAILABLE,
}

_CLOSE_CODE = {
    RefusalReason.BAD_REQUEST: CloseCode.NOT_UNDERSTOOD,
    RefusalReason.TOKEN_UNKNOWN: CloseCode.TOKEN_REFUSED,
    RefusalReason.TOKEN_EXPIRED: CloseCode.TOKEN_REFUSED,
    RefusalReason.TOKEN_REVOKED: CloseCode.REVOKED,
    RefusalReason.WRONG_SESSION: CloseCode.WRONG_SESSION,
    RefusalReason.SESSION_ENDING: CloseCode.ENDED,
}

_OF_ANSWER = {
    Answer.MISSING: (RefusalReason.RECORD_MISSING, "the Session's record is being rebuilt"),
    Answer.TOKEN_UNKNOWN: (RefusalReason.TOKEN_UNKNOWN, "this token is not known"),
    Answer.TOKEN_EXPIRED: (RefusalReason.TOKEN_EXPIRED, "this token has expired"),
    Answer.REVOKED: (RefusalReason.TOKEN_REVOKED, "the Session's tokens were revoked"),
    Answer.ENDING: (RefusalReason.SESSION_ENDING, "the Session ends or has ended"),
}


def require(answer: Answer) -> None:
    """Return for a client that was heard; raise what is to be said to any other."""
    if answer in (Answer.OK, Answer.RETURNED):
        return
    reason, message = _OF_ANSWER[answer]
    if answer is Answer.MISSING:
        raise Limited(message, reason=reason, after=RETRY)
    raise Refused(message, reason=reason)


def reason_of(error: GpuSessionError) -> RefusalReason:
    """Give the word that stands for an error."""
    match error:
        case Limited() | Refused():
            return RefusalReason(error.reason)
        case StoreUnavailable():
            return RefusalReason.STORE_UNAVAILABLE
        case ApiUnavailable():
            return RefusalReason.KUBERNETES_UNAVAILABLE
        case _:
            return RefusalReason.INTERNAL_ERROR


def close_code_of(reason: RefusalReason) -> CloseCode:
    """Give the code that closes a WebSocket for it; what may be better soon is 1013."""
    return _CLOSE_CODE.get(reason, CloseCode.STORE_UNREACHABLE)


def retry_after(error: GpuSessionError) -> dict[str, str]:
    """Give the header that says when to come again, if coming again may help."""
    if not isinstance(error, Retry):
        return {}
    return {"Retry-After": str(seconds_to_wait(error.after or RETRY))}
