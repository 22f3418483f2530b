"""A fake of the neighbour kube-apiserver: real HTTP, a few answers, everything else 404.

It serves Pods, Sessions, TokenReviews and SubjectAccessReviews, from what a test wrote into
it. For tests of agent and gateway, which say nothing else to the apiserver; the real one has
tests of its own.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from tests.support import kubeconfig

Object = dict[str, Any]


class FakeApiserver:
    """Serves on loopback while its with block lasts; `pods` and `tokens` are its etcd."""

    def __init__(self) -> None:
        self.pods: dict[tuple[str, str], Object] = {}
        self.sessions: list[Object] = []
        self.tokens: dict[str, tuple[str, list[str]]] = {}
        self.allowed: set[tuple[str, str, str, str]] = set()
        """Who may do what to the tokens of which Session: user, verb, namespace, name."""
        self.is_down = False
        self.hides_sessions = False
        self.knows_audiences = True
        self.requests: Counter[str] = Counter()
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/api/v1/namespaces/{namespace}/pods/{name}", self._pod)
        sessions = "/apis/gpusession.dev/v1alpha1"
        app.router.add_get(f"{sessions}/sessions", self._sessions)
        app.router.add_get(f"{sessions}/namespaces/{{namespace}}/sessions/{{name}}", self._session)
        app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", self._review)
        access = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        app.router.add_post(access, self._access_review)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def add_pod(self, name: str, *, uid: str, node: str, use: str | None, **meta: Any) -> Object:
        """Keep a running Pod of namespace default."""
        labels = {} if use is None else {"gpusession.dev/use": use}
        pod = {
            "metadata": {"name": name, "namespace": "default", "uid": uid, "labels": labels} | meta,
            "spec": {"nodeName": node},
            "status": {"phase": "Running"},
        }
        self.pods["default", name] = pod
        return pod

    def write_kubeconfig(self, file: Path) -> Path:
        """Write a kubeconfig for it."""
        return kubeconfig.for_fake(file, server=self.url)

    async def _pod(self, request: web.Request) -> web.Response:
        self.requests["pod"] += 1
        if self.is_down:
            return _status(503)
        pod = self.pods.get((request.match_info["namespace"], request.match_info["name"]))
        return _status(404) if pod is None else web.json_response(pod)

    async def _sessions(self, _: web.Request) -> web.Response:
        self.requests["sessions"] += 1
        if self.is_down:
            return _status(503)
        return web.json_response({"metadata": {}, "items": self.sessions})

    async def _session(self, request: web.Request) -> web.Response:
        if self.is_down or self.hides_sessions:
            return _status(503)
        for session in self.sessions:
            if session["metadata"]["name"] == request.match_info["name"]:
                return web.json_response(session)
        return _status(404)

    async def _review(self, request: web.Request) -> web.Response:
        self.requests["review"] += 1
        if self.is_down:
            return _status(503)
        spec = (await request.json())["spec"]
        username, audiences = self.tokens.get(spec["token"], ("", []))
        shared = [audience for audience in audiences if audience in spec["audiences"]]
        status: Object = {"authenticated": bool(shared)}
        if username and not self.knows_audiences:
            status = {"authenticated": True, "user": {"username": username}}
        elif shared:
            status |= {"user": {"username": username}, "audiences": shared}
        return web.json_response({"status": status}, status=201)

    async def _access_review(self, request: web.Request) -> web.Response:
        self.requests["access"] += 1
        if self.is_down:
            return _status(503)
        spec = (await request.json())["spec"]
        asked = spec["resourceAttributes"]
        what = (asked["group"], asked["resource"], asked["subresource"])
        who = (spec["user"], asked["verb"], asked["namespace"], asked["name"])
        allowed = what == ("gpusession.dev", "sessions", "token") and who in self.allowed
        return web.json_response({"status": {"allowed": allowed}}, status=201)


def _status(code: int) -> web.Response:
    return web.json_response({"kind": "Status", "message": "fake", "code": code}, status=code)
