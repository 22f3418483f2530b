"""One-shot calls for scripts: repeated for a while, then said."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.client_rig import QUICK, FakeGateway

from gpusession.client import GatewayUnreachable, KubernetesIdentity, SessionEnded, TokenRefused
from gpusession.client.opening import TokenSource, calling, credentials_for
from gpusession.client.single import Single


@asynccontextmanager
async def single(url: str, source: TokenSource = "token-0") -> AsyncIterator[Single]:
    """Give the one-shot client of a Session, with a second of patience."""
    timing = replace(QUICK, patience=timedelta(seconds=1))
    async with calling(url, tls=None, timing=timing) as calls:
        credentials = credentials_for(source, calls, timing)
        yield Single(calls, credentials, session=None, timing=timing)


async def test_each_call_goes_to_its_route(gateway: FakeGateway) -> None:
    """A beat, an activity with its lease, a close; and never a connection."""
    async with single(gateway.url) as caller:
        await caller.beat()
        await caller.activity(timedelta(minutes=1))
        await caller.close()
    calls = [(call["path"], call["body"]) for call in gateway.seen("http")]

    assert calls == [
        ("/v1/heartbeat", ""),
        ("/v1/activity", '{"busySeconds":60.0}'),
        ("/v1/close", ""),
    ]
    assert gateway.count("connect") == 0


async def test_call_is_repeated_until_the_patience_is_over(gateway: FakeGateway) -> None:
    """A gateway that restarts costs a script a second, not its beat."""
    gateway.rules(status=503)
    async with single(gateway.url) as caller:
        with pytest.raises(GatewayUnreachable, match="Told"):
            await caller.beat()

    assert gateway.count("http") > 1


@pytest.mark.parametrize(("status", "error"), [(401, TokenRefused), (410, SessionEnded)])
async def test_clear_no_is_not_repeated(
    gateway: FakeGateway, status: int, error: type[Exception]
) -> None:
    """It ends the script at once."""
    gateway.rules(status=status)
    async with single(gateway.url) as caller:
        with pytest.raises(error):
            await caller.beat()

    assert gateway.count("http") == 1


async def test_refused_token_is_made_anew(gateway: FakeGateway, tmp_path: Path) -> None:
    """Where there is an identity to make it for."""
    file = tmp_path / "kube-token"
    file.write_text("kube-0")
    async with single(gateway.url, KubernetesIdentity("a", "b", token_file=file)) as caller:
        await caller.beat()
        gateway.rules(tokens=[])
        await caller.beat()

    assert gateway.count("mint") == 2
