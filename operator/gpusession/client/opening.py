"""Puts a client together from what its caller knows: an address, and where a token is."""

import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from gpusession.client.backoff import Timing
from gpusession.client.calls import Calls
from gpusession.client.credentials import (
    Credentials,
    GivenToken,
    KubernetesIdentity,
    MintedToken,
    TokenFile,
)
from gpusession.client.session import Session

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}

TokenSource = str | Path | KubernetesIdentity
"""A token itself, a file with one, or somebody for whom the gateway makes one."""


@asynccontextmanager
async def connect(
    url: str,
    *,
    token: str | None = None,
    token_file: Path | str | None = None,
    kubernetes: KubernetesIdentity | None = None,
    session: str | None = None,
    tls: ssl.SSLContext | None = None,
    timing: Timing | None = None,
) -> AsyncIterator[Session]:
    """Keep a Session connected while the block runs, with exactly one source of a token.

    `session` (`<namespace>/<name>`) has the gateway refuse a token of another Session.
    Raises GatewayUnreachable if there is no connection within the timing's patience, or GaveUp.
    """
    timing = timing or Timing()
    sources = [token, None if token_file is None else Path(token_file), kubernetes]
    given = [source for source in sources if source is not None]
    if len(given) != 1:
        raise ValueError("exactly one of token, token_file and kubernetes is needed")
    async with hold(url, given[0], session=session, tls=tls, timing=timing) as held:
        await held.connected(within=timing.patience)
        yield held


@asynccontextmanager
async def hold(
    url: str,
    source: TokenSource,
    *,
    session: str | None = None,
    tls: ssl.SSLContext | None = None,
    timing: Timing | None = None,
    chance: Callable[[], float] = random.random,
) -> AsyncIterator[Session]:
    """Give the Session at once, connected or not: for work that must not wait for a gateway."""
    timing = timing or Timing()
    async with calling(url, tls=tls, timing=timing) as calls:
        credentials = credentials_for(source, calls, timing)
        async with Session(
            calls, credentials, session=session, timing=timing, chance=chance
        ) as held:
            yield held


@asynccontextmanager
async def calling(url: str, *, tls: ssl.SSLContext | None, timing: Timing) -> AsyncIterator[Calls]:
    """Give the HTTP side of a gateway."""
    calls = Calls(gateway_base(url), tls=tls, timeout=timing.dial_timeout)
    try:
        yield calls
    finally:
        await calls.close()


def credentials_for(source: TokenSource, calls: Calls, timing: Timing) -> Credentials:
    """Give the way to a token."""
    match source:
        case str():
            return GivenToken(source)
        case Path():
            return TokenFile(source, patience=timing.file_patience)
        case KubernetesIdentity():
            return MintedToken(source, calls)


def gateway_base(url: str) -> str:
    """Check a gateway's address; raises ValueError, which never quotes it.

    User, password, query and fragment are refused: they end up in logs of others.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError("a gateway's address is http(s)://host[:port][/path]")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("a gateway's address holds no user, query or fragment")
    return f"{_SCHEMES[parts.scheme]}://{parts.netloc}{parts.path.rstrip('/')}"
