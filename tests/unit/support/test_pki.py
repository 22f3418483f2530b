"""Certificates and keys of a test control plane."""

import ssl
import stat
from pathlib import Path

import pytest
from tests.support.pki import CertificateAuthority, service_account_keys


def handshake(authority: Path, pair: tuple[Path, Path], hostname: str) -> None:
    """Let a strict client and a server meet in memory."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(*pair)
    client_context = ssl.create_default_context(cafile=authority)
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(down, up, server_hostname=hostname)
    server = server_context.wrap_bio(up, down, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.mark.parametrize("hostname", ["agent.lab.svc", "127.0.0.1"])
def test_issued_certificate_serves_its_names(hostname: str, tmp_path: Path) -> None:
    """A client that verifies strictly accepts the names and addresses asked for."""
    authority = CertificateAuthority(tmp_path)
    pair = authority.issue("agent", sans=("agent.lab.svc", "127.0.0.1"))

    handshake(authority.ca_file, pair, hostname)


def test_other_names_are_refused(tmp_path: Path) -> None:
    """A certificate vouches for no name that it does not hold."""
    authority = CertificateAuthority(tmp_path)
    pair = authority.issue("agent", sans=("agent.lab.svc",))

    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.ca_file, pair, "gateway.lab.svc")


def test_every_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Keys are made in shared temporary folders: nobody else may read them."""
    CertificateAuthority(tmp_path).issue("system:kube-controller-manager")
    service_account_keys(tmp_path)

    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
