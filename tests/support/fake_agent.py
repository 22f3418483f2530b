"""A fake of the neighbour agent: real HTTPS, and the answers that a test gives it.

It checks nothing and releases nothing; the real agent has tests of its own. Without an
answer for a route it says 503, as an agent does that is not ready.
"""

import asyncio
import ssl
from typing import Any, Self

import msgspec
from aiohttp import web
from tests.support.pki import Certificate

from gpusession.api.release import (
    BindReport,
    BindRequest,
    Problem,
    ReleaseOrder,
    ReleaseReport,
    ReleaseRequest,
    ReleaseResponse,
)
from gpusession.api.usage import UsageReport


class FakeAgent:
    """Serves on loopback while its with block lasts; `binds` and `releases` are its orders."""

    def __init__(self, certificate: Certificate) -> None:
        self.bind_report: BindReport | None = None
        self.release_report: ReleaseReport | None = None
        self.usage_report: UsageReport | None = UsageReport(boot_id="fake")
        self.usage_pause = 0.0
        """Seconds until it says what it knows of usage."""
        self.usages = 0
        self.latest_epoch = 0
        self.binds: list[BindRequest] = []
        self.releases: list[ReleaseOrder] = []
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(certificate.cert, certificate.key)

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_post("/v1/bind", self._bind)
        application.router.add_post("/v1/releases", self._release)
        application.router.add_get("/v1/usage", self._usage)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        host, port = self._runner.addresses[0]
        self.url = f"https://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _bind(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=BindRequest)
        self.binds.append(asked)
        if asked.leader_epoch < self.latest_epoch:
            problem = Problem(reason="StaleLeader", message="no", leader_epoch=self.latest_epoch)
            return web.Response(status=409, body=msgspec.json.encode(problem))
        return _json(self.bind_report)

    async def _usage(self, _: web.Request) -> web.Response:
        self.usages += 1
        await asyncio.sleep(self.usage_pause)
        return _json(self.usage_report)

    async def _release(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=ReleaseRequest)
        self.releases.extend(asked.releases)
        if self.release_report is None:
            return _json(None)
        reports = tuple(
            msgspec.structs.replace(self.release_report, session_uid=order.session_uid)
            for order in asked.releases
        )
        return _json(ReleaseResponse(reports=reports))


def _json(answer: Any) -> web.Response:
    if answer is None:
        return web.json_response({"reason": "NotReady", "message": "still starting"}, status=503)
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
