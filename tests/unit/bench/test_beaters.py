"""What the clients of a benchmark say, and what they count."""

from typing import Any

import pytest
from tests.bench.beaters import ACK, BEAT, Beater, Tally

from gpusession.api.frames import Beat, decode_client_frame

SERVER_FRAME = bytes((0x81, len(ACK))) + ACK


class Line:
    """A transport that keeps what was written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written.append(data)


def _connected() -> tuple[Tally, Beater, Any]:
    tally, line = Tally(), Line()
    tally.is_beating = True
    beater = Beater(tally, "token")
    beater.connection_made(line)
    beater.beat()
    line.written.clear()
    return tally, beater, line


def test_a_beat_is_a_masked_frame_that_the_gateway_reads() -> None:
    """Two bytes of head, four of mask that change nothing, and the text."""
    assert BEAT[:6] == bytes((0x81, 0x80 | len(BEAT) - 6, 0, 0, 0, 0))
    assert decode_client_frame(BEAT[6:]) == Beat()


@pytest.mark.parametrize("cut", [1, 5, len(SERVER_FRAME) - 1])
def test_an_answer_in_two_pieces_counts_once(cut: int) -> None:
    """And brings forth one more beat."""
    tally, beater, line = _connected()

    beater.data_received(SERVER_FRAME[:cut])
    beater.data_received(SERVER_FRAME[cut:])
    beater.data_received(b"\x89\x00")

    assert (tally.acks, line.written) == (1, [BEAT])


def test_when_the_beating_is_over_nothing_more_is_sent() -> None:
    """The last answers are counted all the same."""
    tally, beater, line = _connected()
    tally.is_beating = False

    beater.data_received(SERVER_FRAME)

    assert (tally.acks, tally.sent, line.written) == (1, 1, [])
