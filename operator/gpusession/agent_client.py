"""The controller's side of the agent's API: find a node's agent, call it over TLS."""

import asyncio
import ssl
from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec

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
from gpusession.errors import AgentUnavailable, StaleLeader
from gpusession.metrics import AGENT_CALLS

TOKEN_REREAD = timedelta(seconds=60)
"""kubelet renews a projected token at 80 % of its hour; once a minute is early enough."""

Answer = TypeVar("Answer")


class AgentClient:
    """Calls node agents; a failure is AgentUnavailable with a sentence for a condition.

    Raises StaleLeader where an agent has had orders of a later leader.

    `locate` names the base URL of a node's agent, or None where none is known. `tls` is asked
    at each call; a connection that was opened under another context is not used again.
    """

    def __init__(
        self,
        locate: Callable[[str], str | None],
        *,
        tls: Callable[[], ssl.SSLContext],
        server_name: str,
        token_file: Path,
        timeout: timedelta,
    ) -> None:
        self._locate = locate
        self._tls = tls
        self._server_name = server_name
        self._token_file = token_file
        self._token = ""
        self._token_read_at = float("-inf")
        self._timeout = timeout
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def bind(self, node: str, request: BindRequest) -> BindReport:
        """Claim a Pod on this node; a refusal is an answer, not an error."""
        return await self._call(node, "/v1/bind", request, BindReport, patience=timedelta())

    async def release(self, node: str, order: ReleaseOrder) -> ReleaseReport:
        """Release one Session; waits as long as the order's own grace asks for."""
        grace = timedelta(seconds=order.termination_grace_period_seconds)
        response = await self._call(
            node,
            "/v1/releases",
            ReleaseRequest(releases=(order,)),
            ReleaseResponse,
            patience=grace,
        )
        for report in response.reports:
            if report.session_uid == order.session_uid:
                return report
        raise AgentUnavailable(f"the agent on {node} left this Session out of its answer")

    async def usage(self, node: str) -> UsageReport:
        """Tell which Sessions bound on this node work on their GPUs, all with one call."""
        return await self._call(node, "/v1/usage", None, UsageReport, patience=timedelta())

    async def _call(
        self,
        node: str,
        path: str,
        body: msgspec.Struct | None,
        kind: type[Answer],
        *,
        patience: timedelta,
    ) -> Answer:
        """POST the body, or GET where there is none."""
        base = self._locate(node)
        if base is None:
            AGENT_CALLS.labels(path, "absent").inc()
            raise AgentUnavailable(f"no running agent is known on node {node}")
        timeout = aiohttp.ClientTimeout(total=(self._timeout + patience).total_seconds())
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                base + path,
                data=None if body is None else msgspec.json.encode(body),
                headers={
                    "Authorization": f"Bearer {self._read_token()}",
                    "Content-Type": "application/json",
                },
                ssl=self._tls(),
                server_hostname=self._server_name,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                status, answer = response.status, await response.read()
            if status != HTTPStatus.OK:
                AGENT_CALLS.labels(path, f"{status // 100}xx").inc()
                raise _error_of(f"the agent on {node} says {status}", answer)
            decoded = msgspec.json.decode(answer, type=kind)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError) as error:
            AGENT_CALLS.labels(path, "none").inc()
            raise AgentUnavailable(
                f"the agent on {node} did not answer: {type(error).__name__}"
            ) from error
        AGENT_CALLS.labels(path, "2xx").inc()
        return decoded

    def _read_token(self) -> str:
        now = asyncio.get_running_loop().time()
        if now - self._token_read_at > TOKEN_REREAD.total_seconds():
            self._token = self._token_file.read_text().strip()
            self._token_read_at = now
        return self._token


def _error_of(what: str, answer: bytes) -> AgentUnavailable | StaleLeader:
    try:
        problem = msgspec.json.decode(answer, type=Problem)
    except msgspec.MsgspecError:
        return AgentUnavailable(f"{what}: {answer[:200].decode(errors='replace')}")
    sentence = f"{what}: {problem.message}"
    if problem.leader_epoch is not None:
        return StaleLeader(sentence, known=problem.leader_epoch)
    return AgentUnavailable(sentence)
