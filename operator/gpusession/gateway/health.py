"""/healthz, /readyz and /metrics of the gateway, for kubelet and Prometheus."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


class Health:
    """Alive while it answers; ready while it may take clients."""

    def __init__(self, doubts: Callable[[], str | None]) -> None:
        self._doubts = doubts

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
        """200: whatever is wrong around it, a restart would only cost connections."""
        return web.Response(text="ok\n")

    async def readyz(self, _: web.Request) -> web.Response:
        """503 with the reason while draining, or cut off from Redis."""
        doubt = self._doubts()
        return web.Response(status=503 if doubt else 200, text=f"{doubt or 'ok'}\n")

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus text format."""
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
