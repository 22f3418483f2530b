"""Binds a Session to a Pod of this node: from then on the ledger watches what it holds."""

from gpusession.agent.gpu_view import GpuView, Scene, sighting_of
from gpusession.agent.ledger import Ledger
from gpusession.agent.ledger_row import Claim, Row, RowState
from gpusession.agent.nvml import Blind
from gpusession.agent.pid_namespace import PidNamespace
from gpusession.agent.pod_check import refusal_of_bind
from gpusession.api.release import BindReport, BindRequest
from gpusession.api.session import Reason
from gpusession.kube.reader import KubeReader
from gpusession.metrics import BINDS


class Binder:
    """Answers binds; the row is on disk before the answer."""

    def __init__(
        self,
        *,
        node_name: str,
        boot_id: str,
        namespace: PidNamespace,
        reader: KubeReader,
        view: GpuView,
        ledger: Ledger,
    ) -> None:
        self._node_name = node_name
        self._boot_id = boot_id
        self._namespace = namespace
        self._reader = reader
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
        scene = await self._view.look()
        if isinstance(scene, Blind):
            return _refused(Reason.DEVICE_NOT_OBSERVABLE, f"NVML: {scene.detail}")
        return await self._claim(request, scene)

    async def _claim(self, request: BindRequest, scene: Scene) -> BindReport:
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
        if not await self._ledger.bind(claim, baseline=baseline):
            return _refused(Reason.POD_IN_USE, "another Session has this Pod")
        seen = {request.session_uid: (sighting.gpu_uuids, sighting.memory_bytes)}
        await self._ledger.sight(seen)
        row = await self._ledger.find(request.session_uid)
        return BindReport(
            bound=True,
            gpu_uuids=row.gpu_uuids if row is not None else (),
            memory_bytes=sighting.memory_bytes,
            boot_id=self._boot_id,
        )


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
