"""The HTTP routes of a client with a Session token: everything that a WebSocket can, by curl."""

import asyncio
from datetime import timedelta
from http import HTTPStatus

from aiohttp import web

from gpusession.api.frames import (
    SESSION_HEADER,
    ActivityRequest,
    RefusalReason,
    SessionAnswer,
    SessionPhase,
    TokenAnswer,
)
from gpusession.api.session import RecordState
from gpusession.errors import Refused
from gpusession.gateway import requests
from gpusession.gateway.clients import Clients
from gpusession.gateway.connection import pending_notice
from gpusession.gateway.following import Following, moment
from gpusession.store.clients import Answer
from gpusession.store.identities import Look
from gpusession.tokens import Presented


class ClientApi:
    """Heartbeat, activity, close and refresh."""

    def __init__(
        self,
        clients: Clients,
        *,
        following: Following,
        read_timeout: timedelta,
        close_wait: timedelta,
    ) -> None:
        self._clients = clients
        self._following = following
        self._read_timeout = read_timeout
        self._close_wait = close_wait.total_seconds()

    async def heartbeat(self, request: web.Request) -> web.Response:
        """POST /v1/heartbeat."""
        who = requests.presented(request)
        async with self._clients.in_time():
            look = await identify(self._clients, who, request.headers.get(SESSION_HEADER))
            answer = await self._clients.beat(who)
        self._clients.require(who, answer)
        return requests.answer(_standing(look, answer))

    async def activity(self, request: web.Request) -> web.Response:
        """POST /v1/activity."""
        who = requests.presented(request)
        asked = await requests.read_body(request, ActivityRequest, within=self._read_timeout)
        async with self._clients.in_time():
            look = await identify(self._clients, who, request.headers.get(SESSION_HEADER))
            answer = await self._clients.activity(who, timedelta(seconds=asked.busy_seconds))
        self._clients.require(who, answer)
        return requests.answer(_standing(look, answer))

    async def refresh(self, request: web.Request) -> web.Response:
        """POST /v1/refresh."""
        who = requests.presented(request)
        async with self._clients.in_time():
            await identify(self._clients, who, request.headers.get(SESSION_HEADER))
            answer, token, lasts = await self._clients.refresh(who)
        self._clients.require(who, answer)
        return requests.answer(
            TokenAnswer(token=token.text, expires_in_seconds=lasts.total_seconds())
        )

    async def close(self, request: web.Request) -> web.Response:
        """POST /v1/close: 200 once the controller has begun the end, 202 if it will."""
        who = requests.presented(request)
        with self._following.expect(who.uid) as ending:
            async with self._clients.in_time():
                look = await identify(self._clients, who, request.headers.get(SESSION_HEADER))
                answer = await self._clients.close(who)
            self._clients.require(who, answer)
            done, _ = await asyncio.wait({ending}, timeout=self._close_wait)
            until = moment(ending.result().fields.get("until")) if done else None
        response = requests.answer(
            SessionAnswer(
                namespace=look.ns,
                name=look.name,
                phase=SessionPhase.PENDING_DESTROY,
                deadline=None if until is None else pending_notice(None, until).deadline,
            )
        )
        response.set_status(HTTPStatus.OK if done else HTTPStatus.ACCEPTED)
        return response


async def identify(clients: Clients, who: Presented, wanted: str | None) -> Look:
    """Find whose token it is; refuses one of another Session than the one named."""
    look = await clients.look(who)
    clients.require(who, look.answer)
    if wanted is not None and wanted != f"{look.ns}/{look.name}":
        message = f"this token is not for Session {wanted}"
        raise Refused(message, reason=RefusalReason.WRONG_SESSION)
    return look


def _standing(look: Look, answer: Answer) -> SessionAnswer:
    is_pending = look.state is RecordState.PENDING and answer is not Answer.RETURNED
    deadline = pending_notice(look.why, look.until).deadline if is_pending else None
    phase = SessionPhase.PENDING_DESTROY if is_pending else SessionPhase.ACTIVE
    return SessionAnswer(namespace=look.ns, name=look.name, phase=phase, deadline=deadline)
