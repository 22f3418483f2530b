"""A fake of the neighbour kube-apiserver that answers what a test has written down.

For answers that a healthy apiserver cannot be made to give; whatever it can be made to
give is tested on the real one.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web


@dataclass(frozen=True)
class Answer:
    """One answer; as a watch it sends its lines and then, if it is `open`, stays silent."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    lines: Sequence[Any] | None = None
    open: bool = False


class ScriptedApiserver:
    """Gives its answers in turn, the last one for ever; `requests` are what was asked.

    What is asked at a path of `at` is answered by that, whenever it is asked.
    """

    def __init__(self, *answers: Answer, at: Mapping[str, Answer] | None = None) -> None:
        self.answers = list(answers)
        self.at = at or {}
        self.requests: list[str] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        answer = self.at.get(request.path) or self._next()
        if answer.lines is None:
            body = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            return web.Response(
                status=answer.status,
                text=body,
                headers=answer.headers,
                content_type="application/json",
            )
        stream = web.StreamResponse()
        await stream.prepare(request)
        for line in answer.lines:
            await stream.write(json.dumps(line).encode() + b"\n")
        if answer.open:
            await asyncio.sleep(60)
        return stream

    def _next(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
