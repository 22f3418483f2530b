"""Looks at the owner of one Pod, when a Session that wants it scaled is about to end.

Always from etcd and never watched: a living Session costs no request here.
"""

from gpusession.api.cluster import OwnerReference, Pod, Workload
from gpusession.api.session import Reason
from gpusession.errors import ApiUnavailable, Refused
from gpusession.kube.reader import KubeReader
from gpusession.rules.observation import ABSENT, UNSEEN, Look, Owner, Unscaled
from gpusession.rules.owner import living_others, not_scalable, replicas_before


class OwnerLook:
    """Finds the top-most owner that can be scaled, and what a scaling would take away."""

    def __init__(self, reader: KubeReader) -> None:
        self._reader = reader

    async def look(self, pod: Pod) -> Owner | Unscaled | Look:
        """Return the owner, why it cannot be scaled, that it is gone, or that nobody can tell."""
        try:
            return await self._look(pod)
        except Refused as error:
            return Unscaled(Reason.OWNER_SCALE_REFUSED, str(error))
        except ApiUnavailable:
            return UNSEEN

    async def _look(self, pod: Pod) -> Owner | Unscaled | Look:
        namespace, owner = pod.metadata.namespace, pod.metadata.controller
        if owner is None:
            return ABSENT
        if not owner.is_scalable:
            return not_scalable(owner)
        found = await self._reader.workload(namespace, owner)
        above = found.metadata.controller if found is not None else None
        if owner.kind == "ReplicaSet" and above is not None:
            if not above.is_scalable:
                return not_scalable(above)
            owner, found = above, await self._reader.workload(namespace, above)
        return ABSENT if found is None else await self._described(pod, owner, found)

    async def _described(
        self, pod: Pod, owner: OwnerReference, found: Workload
    ) -> Owner | Unscaled:
        spared, others, wanted = 0, 0, found.spec.replicas
        if owner.kind == "StatefulSet":
            start = found.spec.ordinals.start
            below = replicas_before(pod.metadata.name, owner.name, start=start)
            if below is None:
                return not_scalable(owner)
            spared = below
        elif wanted == 1:
            pods = await self._reader.pods_of(pod.metadata.namespace, owner)
            others = living_others(pods, pod.metadata.uid)
        return Owner(
            reference=owner,
            resource_version=found.metadata.resource_version,
            replicas=wanted,
            spared=spared,
            others=others,
            owned_by=found.metadata.controller,
        )
