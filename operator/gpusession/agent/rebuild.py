"""Fills a ledger whose disk was lost from what the Sessions say, before anyone is served.

Without it two Sessions could claim one Pod, and a release could not tell that the Pod was
ever seen holding memory.
"""

import asyncio
from datetime import timedelta

import msgspec
import structlog

from gpusession.agent.ledger import Ledger
from gpusession.agent.ledger_row import Claim, Known
from gpusession.api.session import Phase, Session
from gpusession.errors import GpuSessionError
from gpusession.kube.reader import KubeReader

PAUSE = timedelta(seconds=1)
"""Between two tries while kube-apiserver gives no answer; the node serves nobody meanwhile."""

LIVING = frozenset({Phase.ACTIVE, Phase.PENDING_DESTROY})

log = structlog.get_logger(__name__)

_session = msgspec.json.Decoder(Session)


class Rebuild:
    """Runs once at the start; `needed` tells the readiness probe why nobody is served yet."""

    def __init__(self, *, node_name: str, boot_id: str, reader: KubeReader, ledger: Ledger) -> None:
        self._node_name = node_name
        self._boot_id = boot_id
        self._reader = reader
        self._ledger = ledger
        self.needed = True

    async def run(self) -> None:
        """Fill a fresh ledger, however long the apiserver takes; leave an old one as it is."""
        while self.needed:
            try:
                if await self._ledger.check():
                    await self._fill()
                self.needed = False
            except GpuSessionError as error:
                log.warning("ledger not rebuilt yet", error=str(error))
                await asyncio.sleep(PAUSE.total_seconds())

    async def _fill(self) -> None:
        found = {}
        async for raw in self._reader.sessions():
            session = _session.decode(raw)
            claim = self._claim(session)
            if claim is not None:
                status = session.status
                found[claim] = Known(status.gpu_uuids, status.seen_holding)
        await self._ledger.fill(found)
        log.info("ledger rebuilt from the Sessions", node=self._node_name, sessions=len(found))

    def _claim(self, session: Session) -> Claim | None:
        status = session.status
        if status.phase not in LIVING or status.node_name != self._node_name:
            return None
        if status.pod_uid is None or status.active_since is None:
            return None
        return Claim(
            session_uid=session.metadata.uid,
            namespace=session.metadata.namespace,
            name=session.metadata.name,
            pod_name=session.spec.pod_refs[0].name,
            pod_uid=status.pod_uid,
            boot_id=self._boot_id,
        )
