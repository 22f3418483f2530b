"""Logging in to a real kube-apiserver, and staying logged in."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support import kubeconfig
from tests.support.control_plane import ControlPlane
from tests.support.pki import CertificateAuthority

from gpusession.errors import ApiUnavailable, Misconfigured
from gpusession.kube.client import KubeClient
from gpusession.kube.connection import KubeConnection

TIMEOUT = timedelta(seconds=5)
REREAD = timedelta(milliseconds=50)
MISSING_POD = "/api/v1/namespaces/default/pods/missing"


@pytest.fixture
def token_file(session_api: ControlPlane, tmp_path: Path) -> Path:
    """Give a file with a good token of the controller."""
    account = ("gpusession-system", "gpusession-controller")
    session_api.kubeconfig_for_service_account(*account, tmp_path)
    return tmp_path / "gpusession-system-gpusession-controller.token"


def by_token(plane: ControlPlane, token_file: Path, **changed: Path) -> Path:
    """Write a kubeconfig that names the token's file."""
    return kubeconfig.by_token_file(
        token_file.parent / "token.kubeconfig",
        **{"ca_file": plane.ca_file} | changed,
        server=plane.server,
        token_file=token_file,
        namespace="default",
    )


def read(token_file: Path) -> str:
    """Read the token."""
    return token_file.read_text()


def rewrite(token_file: Path, token: str) -> None:
    """Replace the token, as kubelet does."""
    token_file.write_text(token)


def remove(token_file: Path) -> None:
    """Take the token away."""
    token_file.unlink()


async def may_look(connection: KubeConnection) -> bool:
    """Ask for a Pod that is not there: whoever is let in gets a 404."""
    async with connection.session(connections=1) as session:
        try:
            found = await KubeClient(session, server=connection.server).get(MISSING_POD)
        except ApiUnavailable as error:
            assert "401" in str(error)  # noqa: PT017 - the other answer
            return False
    return found is None


@pytest.mark.parametrize("ending", ["", "\n"], ids=["bare", "newline"])
async def test_token_is_read_from_its_file(
    session_api: ControlPlane, token_file: Path, ending: str
) -> None:
    """The token of the file logs in, with or without the newline that editors add."""
    rewrite(token_file, read(token_file) + ending)
    connection = KubeConnection(by_token(session_api, token_file), timeout=TIMEOUT)

    await connection.load()

    assert await may_look(connection)


async def test_certificate_logs_in(session_api: ControlPlane) -> None:
    """A kubeconfig with a client certificate works as well."""
    connection = KubeConnection(session_api.admin_kubeconfig, timeout=TIMEOUT)

    await connection.load()

    assert await may_look(connection)


async def test_rotated_token_is_read_again(session_api: ControlPlane, token_file: Path) -> None:
    """A token that kubelet has replaced is used by the session that is open already."""
    good = read(token_file)
    rewrite(token_file, "stale")
    config = by_token(session_api, token_file)
    connection = KubeConnection(config, timeout=TIMEOUT, token_reread=REREAD)
    await connection.load()
    before = await may_look(connection)

    rewrite(token_file, good)
    await asyncio.sleep(2 * REREAD.total_seconds())

    assert (before, await may_look(connection)) == (False, True)


async def test_vanished_token_file_leaves_the_old_token(
    session_api: ControlPlane, token_file: Path
) -> None:
    """A file that is missing while it is replaced breaks nothing: the old token is good yet."""
    config = by_token(session_api, token_file)
    connection = KubeConnection(config, timeout=TIMEOUT, token_reread=REREAD)
    await connection.load()

    remove(token_file)
    await asyncio.sleep(2 * REREAD.total_seconds())

    assert await may_look(connection)


async def test_apiserver_of_another_authority_is_not_spoken_to(
    session_api: ControlPlane, token_file: Path, tmp_path: Path
) -> None:
    """Nobody gets our token who cannot show a certificate of the cluster's CA."""
    other = CertificateAuthority(tmp_path / "other").ca_file
    config = by_token(session_api, token_file, ca_file=other)
    connection = KubeConnection(config, timeout=TIMEOUT)
    await connection.load()

    async with connection.session(connections=1) as session:
        with pytest.raises(ApiUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await KubeClient(session, server=connection.server).get(MISSING_POD)


@pytest.mark.parametrize("text", [None, "", "a: [", "kind: Config\n"])
async def test_useless_kubeconfig_says_so(tmp_path: Path, text: str | None) -> None:
    """A kubeconfig that is missing, empty or garbled ends the process with a sentence."""
    file = tmp_path / "kubeconfig"
    if text is not None:
        file.write_text(text)

    with pytest.raises(Misconfigured, match="GPUSESSION_KUBECONFIG"):
        await KubeConnection(file, timeout=TIMEOUT).load()


async def test_outside_of_a_pod_a_kubeconfig_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kubeconfig and without a pod's ServiceAccount there is no way in."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(Misconfigured, match="run in a pod"):
        await KubeConnection(None, timeout=TIMEOUT).load()


@pytest.mark.parametrize("text", [None, "no certificate"], ids=["missing", "garbled"])
async def test_useless_authority_says_so(
    session_api: ControlPlane, token_file: Path, tmp_path: Path, text: str | None
) -> None:
    """A CA that cannot be read ends the process too, rather than trust the system's own."""
    file = tmp_path / "ca.crt"
    if text is not None:
        file.write_text(text)
    config = by_token(session_api, token_file, ca_file=file)
    connection = KubeConnection(config, timeout=TIMEOUT)

    with pytest.raises(Misconfigured):
        await _opened(connection)


async def _opened(connection: KubeConnection) -> None:
    await connection.load()
    async with connection.session(connections=1):
        pass
