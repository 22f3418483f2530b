"""The whole situation of one Session, as facts: what `lifecycle.step` decides upon.

Three answers are possible everywhere: the thing itself, `ABSENT` (its owner was asked and
says that there is none) and `UNSEEN` (nobody could look). Only the first two are evidence.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from gpusession.api.cluster import Node, OwnerReference, Pod
from gpusession.api.release import BindReport, ReleaseReport, StateReport
from gpusession.api.session import Metadata, Reason, SessionSpec


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


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers of the lifecycle, filled from the settings."""

    pending_report_after: timedelta = timedelta(seconds=3)
