"""A renewed certificate is shown without a restart."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.pki import CertificateAuthority

from gpusession.certificate import ServerCertificate
from gpusession.errors import Misconfigured

NAME = "agent.test"


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    """Give an authority of the test's own."""
    return CertificateAuthority(tmp_path / "ca")


def put(authority: CertificateAuthority, folder: Path, common_name: str) -> tuple[Path, Path]:
    """Put a fresh pair where the agent looks for it."""
    pair = authority.issue(common_name, sans=[NAME])
    files = folder / "tls.crt", folder / "tls.key"
    for source, target in zip(pair, files, strict=True):
        shutil.copy(source, target)
    return files


@asynccontextmanager
async def served(certificate: ServerCertificate) -> AsyncIterator[int]:
    """Serve TLS with it, and follow its files."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=certificate.context)
    following = asyncio.create_task(certificate.run())
    yield server.sockets[0].getsockname()[1]
    following.cancel()
    server.close()
    with suppress(asyncio.CancelledError):
        await following


async def shown(port: int, ca_file: Path) -> str:
    """Shake hands and give the common name of what was shown."""
    context = ssl.create_default_context(cafile=ca_file)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAME)
    subject = writer.get_extra_info("peercert")["subject"]
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return dict(part[0] for part in subject)["commonName"]


async def test_a_renewed_pair_is_shown_to_the_next_caller(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """The files were replaced; nobody restarted anything."""
    files = put(authority, tmp_path, "first")
    certificate = ServerCertificate(*files, period=timedelta(milliseconds=20))
    async with served(certificate) as port:
        before = await shown(port, authority.ca_file)
        put(authority, tmp_path, "second")
        while await shown(port, authority.ca_file) != "second":
            await asyncio.sleep(0.02)

    assert before == "first"


async def test_a_pair_that_does_not_fit_leaves_the_old_one_in_use(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """A half-written renewal must not cut the node off."""
    files = put(authority, tmp_path, "first")
    certificate = ServerCertificate(*files, period=timedelta(milliseconds=20))
    async with served(certificate) as port:
        files[1].write_bytes(authority.issue("other", sans=[NAME]).key.read_bytes())
        await asyncio.sleep(0.2)

        assert await shown(port, authority.ca_file) == "first"


def test_an_agent_without_a_certificate_does_not_start(tmp_path: Path) -> None:
    """It says which file, and ends."""
    with pytest.raises(Misconfigured, match=r"tls\.crt"):
        ServerCertificate(tmp_path / "tls.crt", tmp_path / "tls.key")
