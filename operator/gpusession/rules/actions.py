"""What `lifecycle.step` may ask for: each action is one effect, and safe to repeat.

The worker performs them in order and stops at the first that fails; the next look then
decides again. `controller/actions.py` has one function per class.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from typing_extensions import override

from gpusession.api.release import Mode
from gpusession.api.session import Reason, RecordState, SessionStatus
from gpusession.rules.observation import Owner


@dataclass(frozen=True, slots=True)
class Intent:
    """Which Pod on which node a bind is about to claim."""

    node: str
    pod_uid: str

    @classmethod
    def parse(cls, text: str | None) -> "Intent | None":
        """Read `<node>/<pod uid>`; None for no or an unreadable annotation."""
        node, _, pod_uid = (text or "").partition("/")
        return cls(node, pod_uid) if node and pod_uid else None

    @override
    def __str__(self) -> str:
        return f"{self.node}/{self.pod_uid}"


@dataclass(frozen=True, slots=True)
class Hold:
    """Put our finalizer on the Session and, in the same write, note the intent to bind."""

    intent: Intent | None


@dataclass(frozen=True, slots=True)
class Bind:
    """Have the node's agent claim the Pod for this Session."""

    intent: Intent


@dataclass(frozen=True, slots=True)
class RecordStatus:
    """Write the status that `step` returned."""


@dataclass(frozen=True, slots=True)
class OpenRecord:
    """Create the Session's control record in Redis; best effort, repaired by the resync."""


@dataclass(frozen=True, slots=True)
class ForgetRecord:
    """Drop the Session's control record in Redis; best effort, repaired by the resync."""


@dataclass(frozen=True, slots=True)
class ScaleOwner:
    """Take the Pod's replica from its owner, in the version that was seen and in no other.

    With `last_try` a failure no longer holds up what comes after.
    """

    owner: Owner
    last_try: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """Take the right to end a silent Session, unless a client has been heard since.

    With a grace the record becomes pending and may be taken back; else it is final.
    """

    stage: RecordState
    reason: Reason
    grace: timedelta
    counter: int | None
    """Of the record that was judged; None where any will do."""
    watched_since: datetime | None = None
    """When the watch began under which it was judged; another one proves nothing of it."""


@dataclass(frozen=True, slots=True)
class Reopen:
    """Take back a claim that was never written to the Session; clients start afresh."""


@dataclass(frozen=True, slots=True)
class TellClients:
    """Mark the record, so that gateways say why it ends; best effort."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class TellWouldEnd:
    """Say in an Event and a metric what expiry would have ended; once per silence."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete the Pod of this UID, so that kubelet restarts nothing in it."""

    name: str
    uid: str
    grace: timedelta


@dataclass(frozen=True, slots=True)
class Release:
    """Have the node's agent release and verify, then clear the Redis state.

    A Session that goes on, since only its first Pod went, keeps its state.
    """

    intent: Intent
    mode: Mode
    keeps_state: bool = False


@dataclass(frozen=True, slots=True)
class ClearState:
    """Clear the Redis state from here: the node with its agent is gone."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Publish the one Event that tells of the end; best effort."""


@dataclass(frozen=True, slots=True)
class DropFinalizer:
    """Let the Session go."""


@dataclass(frozen=True, slots=True)
class DeleteSession:
    """Delete the Session object whose time after the end has passed."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """Look again later: after so long, or with growing pauses where None."""

    after: timedelta | None = None


Effect = (
    Hold
    | Bind
    | RecordStatus
    | OpenRecord
    | ForgetRecord
    | ScaleOwner
    | Claim
    | Reopen
    | TellClients
    | TellWouldEnd
    | DeletePod
    | Release
    | ClearState
    | Announce
    | DropFinalizer
    | DeleteSession
)
"""What changes the world."""

Action = Effect | Requeue
"""What a decision consists of; Requeue is the worker's own."""

Step = tuple[SessionStatus, tuple[Action, ...]]
"""A decision: the status as it should be, and the effects that lead there, in order."""
