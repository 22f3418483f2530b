"""How long to wait before the next connection. Pure: chance and time come from outside."""

from dataclasses import dataclass
from datetime import timedelta

from gpusession.api.frames import CloseCode
from gpusession.client.ending import Ending

_PROMPT = frozenset({CloseCode.RESTARTING, CloseCode.STORE_UNREACHABLE})
_MOST_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Timing:
    """Every wait of a client."""

    patience: timedelta = timedelta(seconds=60)
    """How long to look for a first connection, and to repeat a one-shot call."""

    ack_timeout: timedelta = timedelta(seconds=10)
    """A frame that is not acknowledged for so long means that the connection is dead; after a
    heartbeat period already where beats are due, so that one that is lost can be made good."""

    least_ack_timeout: timedelta = timedelta(seconds=3)
    """Not sooner than this for the sake of short beats: a gateway that waits for Redis says
    after 2 s that it waits in vain, and is a living one."""

    dial_timeout: timedelta = timedelta(seconds=10)
    """For TCP, TLS, upgrade and welcome; also for one HTTP call."""

    close_patience: timedelta = timedelta(seconds=30)
    """How long an explicit close looks for a gateway: two of the longest pauses."""

    beat_jitter: float = 0.1
    """Beats come up to this part early or late, so that clients do not march in step."""

    missed_pings: int = 3
    """So many pings of the gateway missed, with nothing else heard for `ack_timeout` at least,
    end a connection: where pings come each second a gateway that is late is not a dead one."""

    first_pause: timedelta = timedelta(milliseconds=200)
    """Upper end of the first pause; doubles with each attempt."""

    longest_pause: timedelta = timedelta(seconds=15)
    """Upper end of all pauses, or half a heartbeat period where that is less: several attempts
    fit into the silence that ends a Session, be it 90 s or 3."""

    restart_spread: timedelta = timedelta(seconds=1)
    """After 1012 and 1013, and after a Retry-After, clients come back spread over this."""

    longest_retry_after: timedelta = timedelta(seconds=60)
    """A Retry-After beyond this would cost the Session its life: 90 s without a beat."""

    file_patience: timedelta = timedelta(seconds=90)
    """How long a refused token file may take to change; kubelet updates one within 60 s."""

    def ack_within(self, period: timedelta) -> timedelta:
        """Say how long a frame may wait for its ack; `period` is that of the beats, or zero."""
        if not period:
            return self.ack_timeout
        return min(self.ack_timeout, max(self.least_ack_timeout, period))

    def silence(self, ping: timedelta) -> timedelta:
        """Say for how long nothing may be heard of a gateway that pings after so long."""
        return max(ping * self.missed_pings, self.ack_timeout)

    def beat_after(self, period: timedelta, *, chance: float) -> timedelta:
        """Spread a period by the beat's jitter; `chance` lies in [0, 1)."""
        return period * (1 - self.beat_jitter + 2 * self.beat_jitter * chance)


class Backoff:
    """Counts attempts; a connection that lived long enough starts the count anew."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._attempts = 0

    def pause(
        self, ending: Ending, *, lived: timedelta, chance: float, period: timedelta = timedelta()
    ) -> timedelta:
        """Say how long to wait after this end; `chance` lies in [0, 1).

        `period` is that of the Session's beats, zero where none are due or it is not known.
        """
        timing = self._timing
        if lived >= timing.longest_pause:
            self._attempts = 0
        attempt = self._attempts
        self._attempts += 1
        spread = timing.restart_spread * chance
        if ending.retry_after is not None:
            return min(ending.retry_after, timing.longest_retry_after) + spread
        if attempt == 0 and ending.code in _PROMPT:
            return spread
        ceiling = timing.first_pause * (1 << min(attempt, _MOST_DOUBLINGS))
        longest = min(timing.longest_pause, period / 2) if period else timing.longest_pause
        return min(ceiling, longest) * chance
