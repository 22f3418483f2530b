"""Looks after a Pod for some seconds after the verdict: kubelet may have started it once more.

kubelet restarts a container whose death it notices before the Pod's deletion. Nothing of a Pod
that is deleted, ended or replaced has any business there: what appears is ended like the rest,
and verified again. A Pod that may be restarted (`onRelease: None`) is left alone.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog

from gpusession.agent.processes import PodProcesses
from gpusession.api.release import ReleaseOrder, ReleaseReport
from gpusession.metrics import RELEASES_REOPENED

PERIOD_SECONDS = 0.1
"""Between two looks; each reads the Pod's few cgroup files, in 0.1 ms."""

log = structlog.get_logger(__name__)


class Aftercare:
    """Watches Pods that were released; each until its cgroup is gone, or its time is up."""

    def __init__(
        self,
        processes: PodProcesses,
        *,
        release: Callable[[ReleaseOrder], Awaitable[ReleaseReport]],
        length: timedelta,
    ) -> None:
        self._processes = processes
        self._release = release
        self._length = length
        self._until: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, order: ReleaseOrder) -> None:
        """Watch the Pod from now on; it is released again whenever something lives in it."""
        loop = asyncio.get_running_loop()
        is_watched = order.session_uid in self._until
        self._until[order.session_uid] = loop.time() + self._length.total_seconds()
        if not is_watched:
            task = loop.create_task(self._watch(order), name=f"aftercare {order.session_uid}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Look no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, order: ReleaseOrder) -> None:
        loop, uid = asyncio.get_running_loop(), order.session_uid
        try:
            while loop.time() < self._until[uid] and self._processes.has_cgroup(order.pod_uid):
                if self._lives(order.pod_uid):
                    log.warning("a released Pod lives again", session_uid=uid, pod=order.pod_name)
                    RELEASES_REOPENED.inc()
                    await self._release(order)
                await asyncio.sleep(PERIOD_SECONDS)
        finally:
            del self._until[uid]

    def _lives(self, pod_uid: str) -> bool:
        try:
            return bool(self._processes.living(pod_uid).pids)
        except OSError as error:  # out of descriptors, say: the next look is due soon
            log.warning("a released Pod cannot be looked at", pod_uid=pod_uid, error=str(error))
            return False
