"""metav1 conditions as values: set one, drop one, and only a changed status moves time."""

from datetime import UTC, datetime

import msgspec

from gpusession.api.session import (
    Condition,
    ConditionStatus,
    ConditionType,
    SessionStatus,
)

LONGEST_MESSAGE = 4096
"""The CRD's maxLength: one character more, and the apiserver refuses the whole status."""


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as metav1.Time is written."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def find(status: SessionStatus, kind: ConditionType) -> Condition | None:
    """Return the condition of this type, if there is one."""
    return next((c for c in status.conditions if c.type == kind), None)


def holds(status: SessionStatus, kind: ConditionType) -> bool:
    """Tell whether the condition is there and True."""
    found = find(status, kind)
    return found is not None and found.status is ConditionStatus.TRUE


def with_condition(
    status: SessionStatus,
    kind: ConditionType,
    value: ConditionStatus,
    *,
    reason: str,
    message: str = "",
    now: datetime,
) -> SessionStatus:
    """Set a condition; `lastTransitionTime` stays while its status stays."""
    before = find(status, kind)
    kept = before is not None and before.status is value
    condition = Condition(
        type=kind,
        status=value,
        reason=reason,
        message=message[:LONGEST_MESSAGE],
        last_transition_time=before.last_transition_time if before and kept else timestamp(now),
        observed_generation=status.observed_generation,
    )
    others = tuple(c for c in status.conditions if c.type != kind)
    conditions = tuple(sorted((*others, condition), key=lambda c: c.type))
    return msgspec.structs.replace(status, conditions=conditions)


def without_condition(status: SessionStatus, *kinds: ConditionType) -> SessionStatus:
    """Remove conditions that no longer say anything."""
    kept = tuple(c for c in status.conditions if c.type not in kinds)
    return msgspec.structs.replace(status, conditions=kept)
