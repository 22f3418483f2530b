"""/healthz, /readyz and /metrics of the controller, for kubelet and Prometheus."""

import asyncio
from datetime import timedelta

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gpusession.controller.sweep import Sweep


class Health:
    """Alive while the watch is not behind the list; ready as a stand-by or with full caches."""

    def __init__(self, *, stale_after: timedelta) -> None:
        self._sweep: Sweep | None = None
        self._synced: tuple[asyncio.Event, ...] = ()
        self._stale_after = stale_after

    def reign(self, sweep: Sweep, *, synced: tuple[asyncio.Event, ...]) -> None:
        """Answer for the work of a leader from now on."""
        self._sweep, self._synced = sweep, synced

    def application(self) -> web.Application:
        """Build the routes."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/healthz", self.healthz),
                web.get("/readyz", self.readyz),
                web.get("/metrics", self.metrics),
            ]
        )
        return application

    async def healthz(self, _: web.Request) -> web.Response:
        """200 unless the watch has been behind for too long; then a restart helps."""
        since = None if self._sweep is None else self._sweep.behind_since
        age = 0.0 if since is None else asyncio.get_running_loop().time() - since
        if age > self._stale_after.total_seconds():
            return web.Response(status=503, text=f"the watch is {age:.0f} s behind the list\n")
        return web.Response(text=f"ok, watch behind for {age:.0f} s\n")

    async def readyz(self, _: web.Request) -> web.Response:
        """200 while standing by, and for a leader that has listed all and watches Sessions."""
        if all(event.is_set() for event in self._synced):
            return web.Response(text="ok\n" if self._sweep else "ok, standing by\n")
        return web.Response(status=503, text="still listing Pods, Nodes and Sessions\n")

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus text format."""
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
