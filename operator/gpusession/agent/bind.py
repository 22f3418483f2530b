"""Binds a Session to a Pod of this node: from then on the ledger watches what it holds."""

import asyncio

import msgspec

from gpusession.agent.gpu_view import GpuView, Scene, sighting_of
from gpusession.agent.ledger import Ledger
from gpusession.agent.ledger_row import Claim, Row, RowState
from gpusession.agent.nvml import Blind
from gpusession.agent.pid_namespace import PidNamespace
from gpusession.agent.pod_check import refusal_of_bind
from gpusession.agent.pod_resources import PodResources, Unseen
from gpusession.api.release import BindReport, BindRequest, ReleaseReport, StateReport, Verdict
from gpusession.api.session import Phase, Reason, Session
from gpusession.kube.reader import KubeReader
from gpusession.metrics import BINDS

_session = msgspec.json.Decoder(Session)


class Binder:
    """Answers binds; the row is on disk before the answer."""

    def __init__(
        self,
        *,
        node_name: str,
        boot_id: str,
        namespace: PidNamespace,
        reader: KubeReader,
        resources: PodResources,
        view: GpuView,
        ledger: Ledger,
    ) -> None:
        self._node_name = node_name
        self._boot_id = boot_id
        self._namespace = namespace
        self._reader = reader
        self._resources = resources
        self._view = view
        self._ledger = ledger

    async def bind(self, request: BindRequest) -> BindReport:
        """Claim the Pod, or say why not; a repeat answers the same with fresh sightings.

        Raises Retry (ApiUnavailable too): nothing is known to be claimed then.
        """
        report = await self._bind(request)
        BINDS.labels(report.reason).inc()
        return report

    async def _bind(self, request: BindRequest) -> BindReport:
        doubt = await self._namespace.doubt()
        if doubt is not None:
            return _refused(Reason.DEVICE_NOT_OBSERVABLE, doubt)
        pod = await self._reader.pod(request.session_namespace, request.pod_name)
        refusal = refusal_of_bind(pod, pod_uid=request.pod_uid, node_name=self._node_name)
        if refusal is not None:
            return _refused(*refusal)
        row = await self._ledger.find(request.session_uid)
        refusal = None if row is None else _refusal_of_row(row, request)
        if refusal is not None:
            return _refused(*refusal)
        assigned, scene = await asyncio.gather(self._assigned(request), self._view.look())
        if isinstance(scene, Scene) and not assigned <= scene.gpu_uuids:
            # A MIG device that nobody uses is in no list, and NVML knows it by name. A GPU that
            # NVML does not know can never be seen to be free.
            scene = await self._view.look(assigned)
        if isinstance(scene, Blind):
            return _refused(Reason.DEVICE_NOT_OBSERVABLE, f"NVML: {scene.detail}")
        return await self._claim(request, scene, assigned)

    async def _assigned(self, request: BindRequest) -> frozenset[str]:
        """Ask kubelet for the Pod's GPUs; where it cannot tell, NVML's lists have to do."""
        found = await self._resources.gpus_of(request.session_namespace, request.pod_name)
        return frozenset() if isinstance(found, Unseen) else frozenset(found)

    async def _claim(
        self, request: BindRequest, scene: Scene, assigned: frozenset[str]
    ) -> BindReport:
        sighting = sighting_of(scene, request.pod_uid)
        claim = Claim(
            session_uid=request.session_uid,
            namespace=request.session_namespace,
            name=request.session_name,
            pod_name=request.pod_name,
            pod_uid=request.pod_uid,
            boot_id=self._boot_id,
        )
        baseline = {stranger.id for stranger in sighting.strangers if stranger.id is not None}
        bound = await self._ledger.bind(claim, baseline=baseline, assigned=assigned)
        if not bound and await self._has_closed_a_dead_claim(request.pod_uid):
            bound = await self._ledger.bind(claim, baseline=baseline, assigned=assigned)
        if not bound:
            return _refused(Reason.POD_IN_USE, "another Session has this Pod")
        seen = {request.session_uid: (sighting.gpu_uuids, sighting.memory_bytes)}
        await self._ledger.sight(seen)
        row = await self._ledger.find(request.session_uid)
        return BindReport(
            bound=True,
            gpu_uuids=row.gpu_uuids if row is not None else (),
            seen_holding=row is not None and row.seen_holding,
            memory_bytes=sighting.memory_bytes,
            boot_id=self._boot_id,
        )

    async def _has_closed_a_dead_claim(self, pod_uid: str) -> bool:
        """Close the claim of a Session that ended without this agent, and tell whether it did.

        1. The agent was away. 2. A human gave up on the evidence, so the Session went.
        3. Its row would keep the Pod from everybody, for ever.
        """
        uid = await self._ledger.living_of_pod(pod_uid)
        row = None if uid is None else await self._ledger.find(uid)
        if row is None:
            return False
        body = await self._reader.session(row.claim.namespace, row.claim.name)
        if body is not None and _lives(_session.decode(body), row.session_uid):
            return False
        message = "the Session ended without this agent"
        report = ReleaseReport(
            session_uid=row.session_uid,
            verdict=Verdict.OVERRIDDEN,
            reason=Reason.OVERRIDDEN,
            message=message,
            state=StateReport(cleared=False, reason=Reason.OVERRIDDEN, message=message),
        )
        await self._ledger.settle(row.claim, report, done=True)
        return True


def _lives(found: Session, uid: str) -> bool:
    """Tell whether this is the very Session, and not at its end."""
    return found.metadata.uid == uid and found.status.phase is not Phase.DESTROYED


def _refusal_of_row(row: Row, request: BindRequest) -> tuple[Reason, str] | None:
    if row.claim.pod_uid != request.pod_uid:
        if row.state is RowState.DONE:
            return None  # proven empty, and the Session turns to the Pod's successor
        return Reason.POD_REPLACED, f"the Session is bound to Pod uid {row.claim.pod_uid}"
    if row.state is not RowState.BOUND:
        return Reason.AGENT_REFUSED, "the release of this Session has begun"
    return None


def _refused(reason: Reason, message: str) -> BindReport:
    return BindReport(bound=False, reason=reason, message=message)
