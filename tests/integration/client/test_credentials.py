"""Where tokens come from, how they are replaced, and that none is ever shown."""

import asyncio
import logging
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.client_rig import QUICK, FakeGateway, until

from gpusession.client import KubernetesIdentity, TokenRefused, connect
from gpusession.client.credentials import GivenToken, MintedToken, TokenFile
from gpusession.client.opening import calling


@pytest.fixture
def identity(tmp_path: Path) -> KubernetesIdentity:
    """Give one whose Kubernetes token the gateway knows."""
    file = tmp_path / "kube-token"
    file.write_text("kube-0\n")
    return KubernetesIdentity("default", "chat", token_file=file)


async def test_token_is_made_for_a_kubernetes_identity(
    gateway: FakeGateway, identity: KubernetesIdentity
) -> None:
    """The gateway is asked once, with the identity's own token and the Session's name."""
    async with connect(gateway.url, kubernetes=identity, timing=QUICK) as session:
        await session.activity()
    (mint,) = gateway.seen("mint")

    assert (mint["token"], mint["body"]) == ("kube-0", {"namespace": "default", "name": "chat"})
    assert gateway.seen("connect")[0]["token"] == "token-1"


async def test_refused_token_is_made_anew(
    gateway: FakeGateway, identity: KubernetesIdentity
) -> None:
    """4401 ends nothing for who can have another one."""
    async with connect(gateway.url, kubernetes=identity, timing=QUICK):
        gateway.hang_up(4401)
        await until(lambda: gateway.count("connect") == 2, "a second connection")

    assert gateway.seen("connect")[1]["token"] == "token-2"


async def test_made_token_lasts_for_reconnects(
    gateway: FakeGateway, identity: KubernetesIdentity
) -> None:
    """A restart of gateways is no storm of TokenReviews."""
    async with connect(gateway.url, kubernetes=identity, timing=QUICK):
        gateway.hang_up(1012)
        await until(lambda: gateway.count("connect") == 2, "a second connection")

    assert gateway.count("mint") == 1


async def test_identity_without_the_right_is_told_so(gateway: FakeGateway, tmp_path: Path) -> None:
    """403 is an answer: asking again would change nothing."""
    file = tmp_path / "kube-token"
    file.write_text("stranger")
    identity = KubernetesIdentity("default", "chat", token_file=file)

    with pytest.raises(TokenRefused, match="Forbidden"):
        async with connect(gateway.url, kubernetes=identity, timing=QUICK):
            pass


async def test_kubernetes_token_comes_late(gateway: FakeGateway, tmp_path: Path) -> None:
    """A projected volume may be mounted after the process has begun to look."""
    file = tmp_path / "kube-token"
    identity = KubernetesIdentity("default", "chat", token_file=file)

    async def write() -> None:
        await asyncio.sleep(0.3)
        file.write_text("kube-0")

    writing = asyncio.create_task(write())
    async with connect(gateway.url, kubernetes=identity, timing=QUICK) as session:
        await session.activity()
    await writing


async def test_kubernetes_token_may_come_from_a_command(gateway: FakeGateway) -> None:
    """Such as kubectl create token, outside of a cluster."""
    command = [sys.executable, "-c", "print('kube-0')"]
    identity = KubernetesIdentity("default", "chat", token_command=command)

    async with connect(gateway.url, kubernetes=identity, timing=QUICK) as session:
        await session.activity()

    assert gateway.seen("mint")[0]["token"] == "kube-0"


async def test_replaced_token_file_is_read_again(gateway: FakeGateway, tmp_path: Path) -> None:
    """The file's owner rotates; the old token is refused; the file has the new one."""
    file = tmp_path / "token"
    file.write_text("token-0\n")
    async with connect(gateway.url, token_file=file, timing=QUICK) as session:
        file.write_text("rotated\n")
        gateway.rules(tokens=["rotated"])
        gateway.hang_up(4401)
        await until(lambda: gateway.count("connect", token="rotated") == 1, "the new token")
        await session.activity()


async def test_token_file_may_change_a_little_late(gateway: FakeGateway, tmp_path: Path) -> None:
    """Kubelet takes its time; meanwhile the refused token is not shown again."""
    file = tmp_path / "token"
    file.write_text("token-0")
    async with connect(gateway.url, token_file=file, timing=QUICK):
        gateway.rules(tokens=["rotated"])
        gateway.hang_up(4401)
        await asyncio.sleep(1)
        file.write_text("rotated")
        await until(lambda: gateway.count("connect") == 2, "a second connection")

    assert [attempt["token"] for attempt in gateway.seen("connect")] == ["token-0", "rotated"]


async def test_token_file_that_never_changes_is_given_up(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    """The wait for another token has an end, and the error names the file."""
    file = tmp_path / "token"
    file.write_text("token-0")
    hasty = replace(QUICK, file_patience=timedelta(seconds=1))
    async with connect(gateway.url, token_file=file, timing=hasty) as session:
        gateway.hang_up(4401)

        with pytest.raises(TokenRefused, match=str(file)):
            await session.ended()


async def test_token_of_a_file_is_never_replaced_from_here(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    """A restarted client would find a dead token in the file; beats keep it alive."""
    file = tmp_path / "token"
    file.write_text("token-0")
    gateway.rules(tokenExpiresInSeconds=0.2)
    async with connect(gateway.url, token_file=file, timing=QUICK):
        await until(lambda: gateway.count("frame", type="beat") >= 3, "three beats")

    assert gateway.count("frame", type="refresh") == 0


async def test_named_session_is_told_to_the_gateway(gateway: FakeGateway) -> None:
    """So that a token of another Session is refused."""
    async with connect(gateway.url, token="token-0", session="default/chat", timing=QUICK):
        pass

    assert gateway.seen("connect")[0]["session"] == "default/chat"


async def test_no_token_in_an_address_a_repr_or_a_log(
    gateway: FakeGateway, identity: KubernetesIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    """Through a mint, a refused upgrade, a refused token and another mint."""
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    async with connect(gateway.url, kubernetes=identity, timing=QUICK) as session:
        gateway.hang_up(4401)
        await until(lambda: gateway.count("connect") == 2, "a second connection")
        shown = repr(session) + repr(vars(session)) + caplog.text
    async with calling(gateway.url, tls=None, timing=QUICK) as calls:
        made = MintedToken(identity, calls)
        shown += repr(made) + repr(GivenToken("token-0")) + repr(identity)
    shown += repr(TokenFile(Path("f"), patience=timedelta()))
    queries = [line["query"] for what in ("mint", "connect") for line in gateway.seen(what)]

    assert "connecting anew" in caplog.text
    assert not any(secret in shown for secret in ("token-0", "token-1", "token-2", "kube-0"))
    assert set(queries) == {""}
