"""What an agent tells about its node: its GPUs, and the Sessions that it knows."""

import msgspec

from gpusession.api.session import Words


class GpuReport(Words, frozen=True, kw_only=True, omit_defaults=False):
    """One GPU, as NVML shows it now."""

    uuid: str
    name: str
    memory_total_bytes: int
    memory_used_bytes: int
    processes: int


class GpusResponse(Words, frozen=True, kw_only=True, omit_defaults=False):
    """Answer of GET /v1/gpus."""

    gpus: tuple[GpuReport, ...]


class ContextReport(Words, frozen=True, kw_only=True, omit_defaults=False):
    """One Session in the agent's ledger."""

    session_uid: str = msgspec.field(name="sessionUID")
    session_namespace: str
    session_name: str
    pod_name: str
    pod_uid: str = msgspec.field(name="podUID")
    state: str
    seen_holding: bool
    gpu_uuids: tuple[str, ...] = msgspec.field(default=(), name="gpuUUIDs")
    max_memory_bytes: int = 0
    attempts: int = 0
    verdict: str | None = None


class ContextsResponse(Words, frozen=True, kw_only=True, omit_defaults=False):
    """Answer of GET /v1/contexts."""

    contexts: tuple[ContextReport, ...]
