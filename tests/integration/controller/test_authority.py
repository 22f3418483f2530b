"""The agents' authority: a rotation is honoured by the next call, and trouble changes nothing."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.fake_agent import FakeAgent
from tests.support.pki import CertificateAuthority

from gpusession.agent_client import AgentClient
from gpusession.api.release import BindReport, BindRequest
from gpusession.controller.authority import AgentAuthority
from gpusession.errors import AgentUnavailable, Misconfigured

NAME = "gpusession-agent.gpusession-agents.svc"
REQUEST = BindRequest(
    session_uid="s", session_namespace="n", session_name="s", pod_name="p", pod_uid="u"
)


class Caller:
    """A controller's way to one agent, with the file that says whom it trusts."""

    def __init__(self, ca_file: Path, agents: AgentClient) -> None:
        self.ca_file = ca_file
        self._agents = agents

    async def is_answered(self) -> bool:
        """Call once."""
        try:
            return (await self._agents.bind("node", REQUEST)).bound
        except AgentUnavailable:
            return False

    async def becomes(self, *, answered: bool) -> None:
        """Call until the answer is this; the test's own time limit bounds it."""
        while await self.is_answered() is not answered:
            await asyncio.sleep(0.02)


@pytest.fixture
def authorities(tmp_path: Path) -> tuple[CertificateAuthority, CertificateAuthority]:
    """Give the one that agents come from first, and the one that follows it."""
    return CertificateAuthority(tmp_path / "old"), CertificateAuthority(tmp_path / "new")


@asynccontextmanager
async def calling(ca_file: Path, locate: Callable[[str], str]) -> AsyncIterator[Caller]:
    """Give a caller that follows its authority's file."""
    ca_file.with_name("token").write_text("any")
    authority = AgentAuthority(ca_file, period=timedelta(milliseconds=20))
    agents = AgentClient(
        locate,
        tls=authority.context,
        server_name=NAME,
        token_file=ca_file.with_name("token"),
        timeout=timedelta(seconds=5),
    )
    following = asyncio.create_task(authority.run())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(agents.close)
        stack.callback(following.cancel)
        yield Caller(ca_file, agents)


@pytest.fixture
async def caller(
    authorities: tuple[CertificateAuthority, CertificateAuthority], tmp_path: Path
) -> AsyncIterator[Caller]:
    """Give a caller that has called an agent of the first authority, and is connected to it."""
    old, _ = authorities
    ca_file = Path(shutil.copy(old.ca_file, tmp_path / "ca.crt"))
    async with FakeAgent(old.issue("agent", sans=[NAME])) as agent:
        agent.bind_report = BindReport(bound=True)
        async with calling(ca_file, lambda _: agent.url) as caller:
            assert await caller.is_answered()
            yield caller


async def test_an_authority_that_was_replaced_is_believed_no_more(
    authorities: tuple[CertificateAuthority, CertificateAuthority], caller: Caller
) -> None:
    """Not even over the connection that is still open."""
    shutil.copy(authorities[1].ca_file, caller.ca_file)

    await caller.becomes(answered=False)


async def test_a_new_authority_is_believed_without_a_restart(
    authorities: tuple[CertificateAuthority, CertificateAuthority], tmp_path: Path
) -> None:
    """The agent shows a certificate of the new one; the file follows; the next call is heard."""
    old, new = authorities
    ca_file = Path(shutil.copy(old.ca_file, tmp_path / "ca.crt"))
    async with FakeAgent(new.issue("agent", sans=[NAME])) as agent:
        agent.bind_report = BindReport(bound=True)
        async with calling(ca_file, lambda _: agent.url) as caller:
            assert not await caller.is_answered()

            shutil.copy(new.ca_file, ca_file)

            await caller.becomes(answered=True)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nMII", None], ids=repr)
async def test_a_file_that_cannot_be_read_leaves_the_old_authority(
    authorities: tuple[CertificateAuthority, CertificateAuthority],
    caller: Caller,
    content: bytes | None,
) -> None:
    """Empty, half-written, missing: nothing changes, and the next good file counts."""
    caller.ca_file.unlink()
    if content is not None:
        caller.ca_file.write_bytes(content)
    await asyncio.sleep(0.2)

    assert await caller.is_answered()
    shutil.copy(authorities[1].ca_file, caller.ca_file)
    await caller.becomes(answered=False)


def test_a_controller_without_an_authority_does_not_start(tmp_path: Path) -> None:
    """It says which file, and ends."""
    with pytest.raises(Misconfigured, match=r"ca\.crt"):
        AgentAuthority(tmp_path / "ca.crt")
