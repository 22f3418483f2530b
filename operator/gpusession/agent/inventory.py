"""What this node has and knows, for humans and for the controller: never evidence."""

from gpusession.agent.ledger import Ledger
from gpusession.agent.ledger_row import Row
from gpusession.agent.nvml import Blind, Nvml
from gpusession.api.inventory import ContextReport, ContextsResponse, GpuReport, GpusResponse
from gpusession.errors import Retry


class Inventory:
    """Answers what is there, and changes nothing."""

    def __init__(self, *, nvml: Nvml, ledger: Ledger) -> None:
        self._nvml = nvml
        self._ledger = ledger

    async def gpus(self) -> GpusResponse:
        """Give the GPUs and what is in use on them; raises Retry while nobody can look."""
        devices, snapshot = await self._nvml.devices(), await self._nvml.snapshot(None)
        if isinstance(devices, Blind):
            raise Retry(f"NVML: {devices.detail}")
        if isinstance(snapshot, Blind):
            raise Retry(f"NVML: {snapshot.detail}")
        used = {gpu.uuid: gpu for gpu in snapshot.gpus}
        reports = (
            GpuReport(
                uuid=device.uuid,
                name=device.name,
                memory_total_bytes=device.memory_total_bytes,
                memory_used_bytes=used[device.uuid].used_bytes,
                processes=len(used[device.uuid].holders),
            )
            for device in devices
            if device.uuid in used
        )
        return GpusResponse(gpus=tuple(reports))

    async def contexts(self) -> ContextsResponse:
        """Give the Sessions in the ledger, done ones included."""
        return ContextsResponse(contexts=tuple(map(_context, await self._ledger.rows())))


def _context(row: Row) -> ContextReport:
    return ContextReport(
        session_uid=row.session_uid,
        session_namespace=row.claim.namespace,
        session_name=row.claim.name,
        pod_name=row.claim.pod_name,
        pod_uid=row.claim.pod_uid,
        state=row.state,
        seen_holding=row.seen_holding,
        gpu_uuids=row.gpu_uuids,
        max_memory_bytes=row.max_bytes,
        attempts=row.attempts,
        verdict=None if row.report is None else row.report.verdict,
    )
