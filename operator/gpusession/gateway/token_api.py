"""The routes for whoever has a Kubernetes identity: new Session tokens, and their revocation.

kube-apiserver says whose token a request carries and what that one may do to
`sessions/token`; without its answer nobody gets one.
"""

import re
from datetime import timedelta

from aiohttp import hdrs, web

from gpusession.api.frames import RefusalReason, RevocationAnswer, TokenAnswer, TokenRequest
from gpusession.errors import Limited, Refused
from gpusession.gateway import requests
from gpusession.gateway.admission import Admission
from gpusession.gateway.clients import Clients
from gpusession.gateway.refusals import RETRY, require
from gpusession.kube.reviews import BearerCheck, KubeReviews
from gpusession.store.clients import Answer, ClientStore
from gpusession.store.identities import IdentityStore

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""A DNS name, as Kubernetes names objects."""


class TokenApi:
    """POST /v1/token and DELETE /v1/tokens."""

    def __init__(
        self,
        store: ClientStore,
        *,
        clients: Clients,
        identities: IdentityStore,
        callers: BearerCheck,
        reviews: KubeReviews,
        admission: Admission,
        read_timeout: timedelta,
    ) -> None:
        self._store = store
        self._clients = clients
        self._identities = identities
        self._callers = callers
        self._reviews = reviews
        self._admission = admission
        self._read_timeout = read_timeout

    async def mint(self, request: web.Request) -> web.Response:
        """POST /v1/token."""
        asked = await requests.read_body(request, TokenRequest, within=self._read_timeout)
        _refuse_malformed(asked.namespace, asked.name)
        caller = await self._permitted(request, "create", asked.namespace, asked.name)
        async with self._clients.in_time():
            await self._admission.pass_caller(asked.namespace, caller)
            uid = await self._store.find(asked.namespace, asked.name)
            if uid is None:
                require(Answer.MISSING)  # not bound yet, over, or lost: it proves nothing
                raise AssertionError
            answer, token, lasts = await self._clients.mint(uid)
        require(answer)
        return requests.answer(
            TokenAnswer(token=token.text, expires_in_seconds=lasts.total_seconds())
        )

    async def revoke(self, request: web.Request) -> web.Response:
        """DELETE /v1/tokens?user=&namespace=: all tokens of a user's Sessions, for good.

        Those whose records are being rebuilt are not known as theirs: then the rest is revoked,
        and the caller has to come again. However many there are, each is a command of its own.
        """
        user, namespace = request.query.get("user", ""), request.query.get("namespace", "")
        if not user:
            raise Refused("say whose: ?user=", reason=RefusalReason.BAD_REQUEST)
        if namespace:
            _refuse_malformed(namespace)
        await self._permitted(request, "delete", namespace)
        is_whole = await self._identities.is_rebuilt()
        uids = await self._store.of_user(user, namespace or None)
        revoked = [uid for uid in uids if await self._store.revoke(uid)]
        if not (is_whole and await self._identities.is_rebuilt()):
            message = f"records are being rebuilt: {len(revoked)} are revoked, more may come"
            raise Limited(message, reason=RefusalReason.RECORD_MISSING, after=RETRY)
        return requests.answer(RevocationAnswer(revoked=len(revoked)))

    async def _permitted(
        self, request: web.Request, verb: str, namespace: str, name: str = ""
    ) -> str:
        """Return the caller's name if they may; raises Refused, and ApiUnavailable."""
        caller = await self._callers.identify(request.headers.get(hdrs.AUTHORIZATION))
        if not await self._reviews.may_on_tokens(caller, verb, namespace=namespace, name=name):
            where = f"in {namespace}" if namespace else "in all namespaces"
            message = f"{caller.username} may not {verb} sessions/token {where}"
            raise Refused(message, reason=RefusalReason.FORBIDDEN)
        return caller.username


def _refuse_malformed(*names: str) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise Refused("no object has such a name", reason=RefusalReason.BAD_REQUEST)
