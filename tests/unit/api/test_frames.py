"""The frames are what docs/clients.md says, and never show a token."""

import json

import msgspec
import pytest

from gpusession.api import frames

TOKEN = "gs1_" + "0" * 32 + "_" + "a" * 43


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ('{"type":"hello","token":"t"}', frames.Hello(token="t")),
        ('{"type":"beat"}', frames.Beat()),
        ('{"type":"activity"}', frames.Activity()),
        ('{"type":"activity","busySeconds":60}', frames.Activity(busy_seconds=60.0)),
        ('{"type":"refresh"}', frames.Refresh()),
        ('{"type":"close"}', frames.Close()),
        ('{"type":"beat","newer":1}', frames.Beat()),
    ],
)
def test_a_clients_frames_are_told_apart_by_type(text: str, frame: frames.ClientFrame) -> None:
    """Field names are camelCase, and unknown ones are skipped."""
    assert frames.decode_client_frame(text) == frame


@pytest.mark.parametrize(
    "frame",
    [
        frames.Welcome(
            namespace="ns",
            name="chat",
            uid="u",
            heartbeat_seconds=30,
            ping_seconds=30,
            token_expires_in_seconds=1800,
        ),
        frames.Ack(of="beat"),
        frames.NewToken(token=TOKEN, expires_in_seconds=1800),
        frames.PendingDestroy(
            reason="HeartbeatLost", deadline="2026-01-01T00:00:00Z", cancellable=True
        ),
        frames.Restored(),
        frames.Error(reason=frames.RefusalReason.TOO_MANY_REQUESTS, message="wait"),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_the_gateways_frames_come_back_as_they_went(frame: frames.GatewayFrame) -> None:
    """A client library decodes them with the same words."""
    assert frames.decode_gateway_frame(frames.encode(frame)) == frame


def test_the_answer_to_refresh_has_type_token() -> None:
    """The one frame that is not called as its class."""
    frame = frames.NewToken(token="t", expires_in_seconds=1800)

    assert json.loads(frames.encode(frame)) == {
        "type": "token",
        "token": "t",
        "expiresInSeconds": 1800,
    }


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"type":"shout"}', '{"type":"hello"}', '{"type":"hello","token":7}']
)
def test_what_is_no_frame_is_refused(text: str) -> None:
    """The connection answers 4400."""
    with pytest.raises(msgspec.DecodeError):
        frames.decode_client_frame(text)


@pytest.mark.parametrize(
    "words",
    [
        frames.Hello(token=TOKEN),
        frames.NewToken(token=TOKEN, expires_in_seconds=1),
        frames.TokenAnswer(token=TOKEN, expires_in_seconds=1),
    ],
    ids=lambda words: type(words).__name__,
)
def test_no_repr_shows_a_token(words: object) -> None:
    """A traceback with locals gives nothing away."""
    assert TOKEN not in repr(words)
