"""What a client and the gateway say to each other: WebSocket frames and HTTP bodies.

Frames are JSON objects told apart by `type`; unknown fields are skipped, so either side
may be newer. docs/clients.md tells the same to authors of clients.
"""

from enum import IntEnum, StrEnum
from typing import Annotated

import msgspec
from typing_extensions import override

from gpusession.api.session import Words

TOKEN_AUDIENCE = "gpusession-gateway"  # noqa: S105 - a name, not a secret
"""The audience of a Kubernetes token that is shown to the gateway's token routes."""

SESSION_HEADER = "Gpusession-Session"
"""Optional `<namespace>/<name>`: the Session that the caller believes its token is for."""

MAX_FRAME = 16 * 1024
"""Bytes of a client's frame or body: the largest, a hello, takes 120."""

BusySeconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
"""How long a client is busy without another word; a day is more than anyone knows ahead."""


class CloseCode(IntEnum):
    """How the gateway closes a WebSocket; what a client does next hangs on it."""

    DONE = 1000
    """The client asked to close its Session."""
    FRAME_TOO_BIG = 1009
    RESTARTING = 1012
    """This gateway goes; connect again, with jitter."""
    STORE_UNREACHABLE = 1013
    """This gateway is cut off from Redis; try another one."""
    NOT_UNDERSTOOD = 4400
    TOKEN_REFUSED = 4401
    """The token is unknown or has expired; get another one."""
    WRONG_SESSION = 4403
    """The token is good, but for another Session than the one named."""
    SILENT = 4408
    REVOKED = 4409
    ENDED = 4410
    """The Session ends or has ended; a new connection is of no use."""


class RefusalReason(StrEnum):
    """The `reason` of an error frame and of every HTTP answer that is no success."""

    BAD_REQUEST = "BadRequest"
    TOKEN_IN_URL = "TokenInURL"  # noqa: S105 - a reason, not a secret
    UNAUTHORIZED = "Unauthorized"
    TOKEN_UNKNOWN = "TokenUnknown"  # noqa: S105 - a reason, not a secret
    TOKEN_EXPIRED = "TokenExpired"  # noqa: S105 - a reason, not a secret
    TOKEN_REVOKED = "TokenRevoked"  # noqa: S105 - a reason, not a secret
    WRONG_SESSION = "WrongSession"
    FORBIDDEN = "Forbidden"
    ORIGIN_REFUSED = "OriginRefused"
    NOT_FOUND = "NotFound"
    METHOD_NOT_ALLOWED = "MethodNotAllowed"
    SLOW_REQUEST = "SlowRequest"
    SESSION_ENDING = "SessionEnding"
    TOO_LARGE = "TooLarge"
    TOO_MANY_REQUESTS = "TooManyRequests"
    TOO_MANY_CONNECTIONS = "TooManyConnections"
    INTERNAL_ERROR = "InternalError"
    RECORD_MISSING = "RecordMissing"
    STORE_UNAVAILABLE = "StoreUnavailable"
    KUBERNETES_UNAVAILABLE = "KubernetesUnavailable"
    DRAINING = "Draining"


class SessionPhase(StrEnum):
    """Where a Session stands, as far as its client needs to know."""

    ACTIVE = "Active"
    PENDING_DESTROY = "PendingDestroy"


def _lower_first(name: str) -> str:
    return name[0].lower() + name[1:]


class Frame(Words, frozen=True, kw_only=True, tag_field="type", tag=_lower_first):
    """One WebSocket message; `type` is the class name, first letter small."""


# ---- client -> gateway ----


class Hello(Frame, frozen=True, kw_only=True):
    """The first frame, unless the token came in the Authorization header."""

    token: str
    session: str | None = None
    """Optional `<namespace>/<name>`, as SESSION_HEADER."""

    @override
    def __repr__(self) -> str:
        return f"Hello(token='...', session={self.session!r})"


class Beat(Frame, frozen=True, kw_only=True):
    """The client lives. So says a pong, which browsers send by themselves."""


class Activity(Frame, frozen=True, kw_only=True):
    """A human did something, or work goes on for so long yet: moves the idle timeout."""

    busy_seconds: BusySeconds = 0.0


class Refresh(Frame, frozen=True, kw_only=True):
    """Give me another token; the old one lives for another minute."""


class Close(Frame, frozen=True, kw_only=True):
    """End my Session."""


ClientFrame = Hello | Beat | Activity | Refresh | Close


# ---- gateway -> client ----


class Welcome(Frame, frozen=True, kw_only=True, omit_defaults=False):
    """The token is good; these are the facts that a client plans its beats by."""

    namespace: str
    name: str
    uid: str
    heartbeat_seconds: float
    """Expected between two beats; 0 if none are."""
    ping_seconds: float
    """The longest silence of the client before the gateway pings it; the pong is a beat."""
    token_expires_in_seconds: float


class Ack(Frame, frozen=True, kw_only=True):
    """A frame of this type was recorded in Redis."""

    of: str


class NewToken(Frame, frozen=True, kw_only=True, tag="token"):
    """The answer to refresh."""

    token: str
    expires_in_seconds: float

    @override
    def __repr__(self) -> str:
        return f"NewToken(token='...', expires_in_seconds={self.expires_in_seconds!r})"


class PendingDestroy(Frame, frozen=True, kw_only=True, omit_defaults=False):
    """The Session ends at `deadline` (RFC 3339) unless a cancellable end is cancelled.

    `reason` is one of api.session.Reason.
    """

    reason: str
    deadline: str
    cancellable: bool
    """Whether a beat, or for Idle an activity, brings the Session back."""


class Restored(Frame, frozen=True, kw_only=True):
    """The end was cancelled."""


class Error(Frame, frozen=True, kw_only=True):
    """Something was refused (RefusalReason); the connection stays open unless a close follows."""

    reason: str
    message: str


GatewayFrame = Welcome | Ack | NewToken | PendingDestroy | Restored | Error


# ---- HTTP bodies ----


class ActivityRequest(Words, frozen=True, kw_only=True):
    """POST /v1/activity; an empty body is an activity without busy time."""

    busy_seconds: BusySeconds = 0.0


class SessionAnswer(Words, frozen=True, kw_only=True):
    """200 of heartbeat, activity and close."""

    namespace: str
    name: str
    phase: SessionPhase
    deadline: str | None = None
    """RFC 3339; when a PendingDestroy ends."""


class TokenRequest(Words, frozen=True, kw_only=True):
    """POST /v1/token, with a Kubernetes bearer token."""

    namespace: str
    name: str


class TokenAnswer(Words, frozen=True, kw_only=True):
    """200 of token and refresh."""

    token: str
    expires_in_seconds: float

    @override
    def __repr__(self) -> str:
        return f"TokenAnswer(token='...', expires_in_seconds={self.expires_in_seconds!r})"


class RevocationAnswer(Words, frozen=True, kw_only=True, omit_defaults=False):
    """200 of DELETE /v1/tokens: how many Sessions lost their tokens."""

    revoked: int


class Refusal(Words, frozen=True, kw_only=True):
    """The body of every 4xx and 5xx: a reason (RefusalReason) and a sentence to read."""

    reason: str
    message: str


_client_frames: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_gateway_frames: msgspec.json.Decoder[GatewayFrame] = msgspec.json.Decoder(GatewayFrame)


def decode_client_frame(text: str | bytes) -> ClientFrame:
    """Read what a client sent; raises msgspec.DecodeError, whose text may quote the frame."""
    return _client_frames.decode(text)


def decode_gateway_frame(text: str | bytes) -> GatewayFrame:
    """Read what the gateway sent; raises msgspec.DecodeError."""
    return _gateway_frames.decode(text)


def encode(words: Words) -> bytes:
    """Write a frame or a body."""
    return msgspec.json.encode(words)
