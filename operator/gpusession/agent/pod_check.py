"""What the Pod itself says, by kube-apiserver, at the moment when it matters.

The Pod opts in with its label and may withdraw: it is read before each bind and release.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto

from gpusession.api.cluster import Pod
from gpusession.api.release import ReleaseOrder
from gpusession.api.session import Reason, Use
from gpusession.errors import ApiUnavailable, Refused
from gpusession.kube.reader import KubeReader

_ENDED_PHASES = frozenset({"Succeeded", "Failed"})


class Consent(Enum):
    """What the Pod says of being ended."""

    GIVEN = auto()
    WITHDRAWN = auto()
    """It exists and no longer carries the label."""
    ABSENT = auto()
    """It does not exist, has another uid, or is on another node."""
    SILENT = auto()
    """kube-apiserver gave no answer in time."""


@dataclass(frozen=True, slots=True)
class PodWord:
    """What the Pod says, and whether kubelet may still start something in it."""

    consent: Consent
    may_restart: bool = True


class PodCheck:
    """Asks for the Pod's consent to its end."""

    def __init__(self, reader: KubeReader, *, node_name: str) -> None:
        self._reader = reader
        self._node_name = node_name

    async def ask(self, order: ReleaseOrder, *, within: timedelta) -> PodWord:
        """Read the Pod anew; never waits for longer than `within`."""
        try:
            async with asyncio.timeout(within.total_seconds()):
                pod = await self._reader.pod(order.session_namespace, order.pod_name)
        except (ApiUnavailable, Refused, TimeoutError):
            return PodWord(Consent.SILENT)
        if pod is None or pod.metadata.uid != order.pod_uid:
            return PodWord(Consent.ABSENT, may_restart=False)
        if pod.spec.node_name != self._node_name:
            return PodWord(Consent.ABSENT)
        consent = Consent.GIVEN if pod.use == Use.EXCLUSIVE else Consent.WITHDRAWN
        return PodWord(consent, may_restart=_may_restart(pod))


def _may_restart(pod: Pod) -> bool:
    ending = pod.metadata.deletion_timestamp is not None or pod.status.phase in _ENDED_PHASES
    return not ending and pod.spec.restart_policy != "Never"


def refusal_of_bind(pod: Pod | None, *, pod_uid: str, node_name: str) -> tuple[Reason, str] | None:
    """Tell why a Session may not have this Pod, or None where it may."""
    if pod is None:
        return Reason.POD_NOT_FOUND, "the Pod does not exist"
    if pod.metadata.uid != pod_uid:
        return Reason.POD_REPLACED, f"a Pod of this name has uid {pod.metadata.uid}"
    if pod.spec.node_name is None:
        return Reason.POD_UNSCHEDULED, "the Pod is on no node yet"
    if pod.spec.node_name != node_name:
        return Reason.AGENT_REFUSED, f"the Pod is on node {pod.spec.node_name}"
    return _refusal_of_use(pod) or _refusal_of_life(pod)


def _refusal_of_use(pod: Pod) -> tuple[Reason, str] | None:
    match pod.use:
        case Use.EXCLUSIVE:
            return None
        case Use.SHARED:
            return Reason.SHARED_NOT_SUPPORTED, "shared Pods are not supported yet"
        case _:
            return Reason.POD_NOT_MANAGED, "the Pod does not carry gpusession.dev/use: exclusive"


def _refusal_of_life(pod: Pod) -> tuple[Reason, str] | None:
    if pod.metadata.deletion_timestamp is not None or pod.status.phase in _ENDED_PHASES:
        return Reason.POD_TERMINATED, f"the Pod is ending or has ended ({pod.status.phase})"
    if pod.status.phase != "Running":
        return Reason.POD_NOT_RUNNING, f"the Pod is {pod.status.phase}"
    return None
