"""The whole situation of one Session, as facts: what `lifecycle.step` decides upon.

Three answers are possible everywhere: the thing itself, `ABSENT` (its owner was asked and
says that there is none) and `UNSEEN` (nobody could look). Only the first two are evidence.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from gpusession.api.cluster import Node, OwnerReference, Pod
from gpusession.api.release import BindReport, ReleaseReport, StateReport
from gpusession.api.session import Metadata, Reason, SessionSpec
from gpusession.rules.expiry import Liveness, Vitals


class Look(Enum):
    """A look that did not bring back the thing itself."""

    ABSENT = "absent"
    UNSEEN = "unseen"


ABSENT = Look.ABSENT
UNSEEN = Look.UNSEEN


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A call to the node's agent that brought no answer, and why."""

    message: str


@dataclass(frozen=True, slots=True)
class Owner:
    """The top-most object that makes the Pod again, in the version that was read."""

    reference: OwnerReference
    resource_version: str
    replicas: int
    spared: int = 0
    """With so many replicas, or fewer, it does not make this Pod."""
    others: int = 0
    """Its other living Pods, counted where any of them might go in place of this one."""
    owned_by: OwnerReference | None = None
    """Its own owner, which may put the replicas back."""


@dataclass(frozen=True, slots=True)
class Unscaled:
    """Why an owner is not scaled down; asking again will not help."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Life:
    """What the record in Redis says of the clients, judged."""

    vitals: Vitals
    liveness: Liveness
    watched_since: datetime | None = None
    """When the watch began under which it was judged."""
    grace_over: bool = False
    """Whether a pending end has had its whole grace, in which clients could return."""
    held: str | None = None
    """Why the brake lets it not go now; None where it may."""
    pauses: bool = False
    """Whether that is a pause that people must hear of, not a mere turn in the queue."""


class Outcome(Enum):
    """What became of a claim: exactly one of claim and return wins."""

    WON = "won"
    RETURNED = "returned"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim of the right to end a Session whose clients are silent."""

    reason: Reason
    outcome: Outcome
    final: bool = True
    """Whether it was for the release, and not for a grace that can be taken back."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that a decision may rest on. Events are not part of it, only what is."""

    metadata: Metadata
    spec: SessionSpec
    pod: Pod | Look = UNSEEN
    node: Node | Look = UNSEEN
    agent_known: bool = True
    """Whether an agent runs on the Pod's node, as far as its Pods tell."""
    bind: BindReport | Unreachable | None = None
    release: ReleaseReport | Unreachable | None = None
    cleared: StateReport | None = None
    rebind_due: bool = False
    owner: Owner | Unscaled | Look = UNSEEN
    scaled: bool = False
    """Whether this round of work has scaled the owner down."""
    life: Life | Look | None = None
    """None: nobody had cause to ask Redis."""
    claimed: Claimed | None = None
    observe_only: bool = False
    """Whether its Namespace wants to be told of expiry only."""
    told_would_end: bool = False
    """Whether this round of work has told so."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers of the lifecycle, filled from the settings."""

    pending_report_after: timedelta = timedelta(seconds=3)
