"""What a client is told when things end, cut by what it can still do.

ClientError
├── GatewayUnreachable   no gateway confirmed it in time; the client itself goes on trying
└── GaveUp               the client has stopped for good; connect anew, or stop too
    ├── SessionEnded         the Session ends or has ended; `reason` says why
    │   └── SessionRevoked       an administrator took back its tokens
    ├── TokenRefused         the token, or who asked for one, was refused; `reason` says why
    │   └── WrongSession         the token is good, but for another Session
    └── Left                 the with block was left
"""

from gpusession.errors import GpuSessionError


class ClientError(GpuSessionError):
    """The root of what a client raises."""


class GatewayUnreachable(ClientError):  # noqa: N818 - named by what has happened
    """No gateway confirmed it in time; nothing is lost by trying again."""


class GaveUp(ClientError):  # noqa: N818 - named by what has happened
    """The client has stopped and beats no more."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class SessionEnded(GaveUp):
    """The Session ends or has ended; `reason` is that of the Session, as far as known."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the Session ends or has ended: {reason}", reason=reason)


class SessionRevoked(SessionEnded):
    """Somebody with the right to do so revoked the Session."""


class TokenRefused(GaveUp):
    """The token is unknown or expired and there is no other, or none may be had."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{message}: {reason}", reason=reason)


class WrongSession(TokenRefused):
    """The token is good, but for another Session than the one named."""


class Left(GaveUp):
    """The with block of this Session was left."""

    def __init__(self) -> None:
        super().__init__("this connection was left", reason="Left")
