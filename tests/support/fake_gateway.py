"""A fake of the neighbour gateway: speaks the protocol, keeps no Session, does what it is told.

    python -m tests.support.fake_gateway --port 8080 --log seen.jsonl --rules '{...}'

Rules are given at the start and changed by `POST /control/rules`; `POST /control/push` says a
frame to, or closes, every open connection. What clients did is appended to the log, one JSON
line each, which outlives a `kill -9`. The real gateway has tests of its own.
"""

import argparse
import asyncio
import copy
import json
import time
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

DEFAULT_RULES: dict[str, Any] = {
    "heartbeatSeconds": 0.2,
    "pingSeconds": 0.5,
    "tokenExpiresInSeconds": 1800.0,
    "tokens": ["token-0"],  # accepted; others are closed with 4401
    "identities": {"kube-0": ["token-1", "token-2"]},  # Kubernetes token -> tokens to make
    "status": 0,  # instead of an upgrade or an answer
    "reason": "Told",
    "retryAfter": None,
    "silent": False,  # no pings, no acks
    "unacknowledged": [],  # frame types that get no ack
    "refusedFrames": {},  # frame type -> reason of an error frame
    "closesFor": {},  # reason -> close code that follows the error frame
    "pending": None,  # a pendingDestroy right after the welcome
    "closeAfterWelcome": None,
}


class Gateway:
    """One gateway; `rules` may change at any moment."""

    def __init__(self, rules: dict[str, Any], log: Path) -> None:
        self.rules = copy.deepcopy(DEFAULT_RULES) | rules
        self._log = log
        self._sockets: set[web.WebSocketResponse] = set()
        self._closing: set[asyncio.Task[bool]] = set()
        self._made = 0

    def application(self) -> web.Application:
        """Give all routes."""
        application = web.Application()
        application.router.add_get("/v1/connect", self._connect)
        application.router.add_post("/v1/token", self._token)
        for verb in ("heartbeat", "activity", "close"):
            application.router.add_post(f"/v1/{verb}", self._call)
        application.router.add_post("/control/reset", self._reset)
        application.router.add_post("/control/rules", self._set_rules)
        application.router.add_post("/control/push", self._push)
        application.router.add_get("/healthz", self._healthy)
        return application

    def _note(self, what: str, **fields: Any) -> None:
        line = json.dumps({"at": time.monotonic(), "what": what, **fields})
        with self._log.open("a") as log:
            log.write(line + "\n")

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _reset(self, _: web.Request) -> web.Response:
        while self._sockets:
            await asyncio.sleep(0.01)  # their clients have left; the log must not tell of it
        self.rules = copy.deepcopy(DEFAULT_RULES)
        self._log.write_text("")
        return web.Response()

    async def _set_rules(self, request: web.Request) -> web.Response:
        self.rules |= await request.json()
        return web.Response()

    async def _push(self, request: web.Request) -> web.Response:
        told = await request.json()
        for socket in list(self._sockets):
            if "frame" in told:
                await socket.send_json(told["frame"])
            else:
                closing = socket.close(code=told["close"], message=told["reason"].encode())
                self._closing.add(asyncio.create_task(closing))  # it waits for the client
        return web.json_response(len(self._sockets))

    def _refusal(self) -> web.Response | None:
        if not self.rules["status"]:
            return None
        after = self.rules["retryAfter"]
        return web.json_response(
            {"reason": self.rules["reason"], "message": "so it was told"},
            status=self.rules["status"],
            headers={} if after is None else {"Retry-After": str(after)},
        )

    async def _token(self, request: web.Request) -> web.Response:
        shown = _bearer(request)
        body = await request.json()
        self._note("mint", token=shown, body=body, query=request.query_string)
        if (refusal := self._refusal()) is not None:
            return refusal
        left = self.rules["identities"].get(shown)
        if not left:
            return web.json_response({"reason": "Forbidden", "message": "no"}, status=403)
        token = left.pop(0)
        self.rules["tokens"] = [*self.rules["tokens"], token]
        return web.json_response(
            {"token": token, "expiresInSeconds": self.rules["tokenExpiresInSeconds"]}
        )

    async def _call(self, request: web.Request) -> web.Response:
        body = await request.text()
        self._note("http", path=request.path, token=_bearer(request), body=body)
        if (refusal := self._refusal()) is not None:
            return refusal
        if _bearer(request) not in self.rules["tokens"]:
            unknown = {"reason": "TokenUnknown", "message": "no"}
            return web.json_response(unknown, status=401)
        return web.json_response({"namespace": "default", "name": "chat", "phase": "Active"})

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        token = _bearer(request)
        self._note(
            "connect",
            token=token,
            query=request.query_string,
            session=request.headers.get("Gpusession-Session"),
        )
        if (refusal := self._refusal()) is not None:
            return refusal
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        if token not in self.rules["tokens"]:
            await socket.send_json({"type": "error", "reason": "TokenUnknown", "message": "no"})
            await socket.close(code=4401)
            return socket
        await self._serve(socket, token)
        return socket

    async def _serve(self, socket: web.WebSocketResponse, token: str) -> None:
        rules = self.rules
        await socket.send_json(
            {
                "type": "welcome",
                "namespace": "default",
                "name": "chat",
                "uid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
                "heartbeatSeconds": rules["heartbeatSeconds"],
                "pingSeconds": rules["pingSeconds"],
                "tokenExpiresInSeconds": rules["tokenExpiresInSeconds"],
            }
        )
        if rules["pending"] is not None:
            await socket.send_json({"type": "pendingDestroy", **rules["pending"]})
        if rules["closeAfterWelcome"] is not None:
            await socket.close(code=rules["closeAfterWelcome"])
            return
        self._sockets.add(socket)
        pinging = asyncio.create_task(self._ping(socket))
        try:
            async for message in socket:
                if message.type is WSMsgType.PONG:
                    self._note("pong")
                elif message.type is WSMsgType.TEXT:
                    await self._answer(socket, json.loads(message.data), token)
        finally:
            pinging.cancel()
            self._sockets.discard(socket)
            self._note("closed", code=socket.close_code)

    async def _ping(self, socket: web.WebSocketResponse) -> None:
        while True:
            await asyncio.sleep(self.rules["pingSeconds"])
            if not self.rules["silent"]:
                await socket.ping()

    async def _answer(
        self, socket: web.WebSocketResponse, frame: dict[str, Any], token: str
    ) -> None:
        kind = frame["type"]
        self._note("frame", token=token, **frame)
        if self.rules["silent"] or kind in self.rules["unacknowledged"]:
            return
        if kind in self.rules["refusedFrames"]:
            reason = self.rules["refusedFrames"][kind]
            await socket.send_json({"type": "error", "reason": reason, "message": "no"})
            if reason in self.rules["closesFor"]:
                await socket.close(code=self.rules["closesFor"][reason], message=b"said at length")
        elif kind == "refresh":
            self._made += 1
            fresh = f"fresh-{self._made}"
            self.rules["tokens"] = [*self.rules["tokens"], fresh]
            expires = self.rules["tokenExpiresInSeconds"]
            await socket.send_json({"type": "token", "token": fresh, "expiresInSeconds": expires})
        else:
            await socket.send_json({"type": "ack", "of": kind})
            if kind == "close":
                await socket.close(code=1000)


def _bearer(request: web.Request) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="fake_gateway")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--rules", type=json.loads, default={})
    asked = parser.parse_args()
    gateway = Gateway(asked.rules, asked.log)
    web.run_app(gateway.application(), host="127.0.0.1", port=asked.port, print=None)


if __name__ == "__main__":
    main()
