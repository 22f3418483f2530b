"""A certificate authority and ServiceAccount keys for one throw-away control plane.

Everything is a PEM file that only its owner can read, valid for a month.
"""

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = timedelta(days=30)
"""A demo left running over a holiday still answers; a leaked key is worth little."""

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Certificate(NamedTuple):
    """Where a certificate and its private key lie."""

    cert: Path
    key: Path


def _write(path: Path, content: bytes) -> Path:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    return path


def _private_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _name(common_name: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    began = datetime.now(UTC) - timedelta(minutes=5)  # noqa: TID251 - validity is real time
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(began)
        .not_valid_after(began + VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


class CertificateAuthority:
    """An EC P-256 authority; its files are ca.crt and ca.key in the folder given."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        subject = _name("gpusession test CA")
        self._certificate = (
            _builder(subject, subject, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = self._store("ca.crt", self._certificate)
        self.ca_key = _write(folder / "ca.key", _private_pem(self._key))

    def _store(self, name: str, certificate: x509.Certificate) -> Path:
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return _write(self._folder / name, pem)

    def issue(
        self, common_name: str, *, organization: str | None = None, sans: Iterable[str] = ()
    ) -> Certificate:
        """Sign a certificate good for serving and for calling; sans are DNS names and IPs."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(common_name, organization)
        authority = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            _builder(subject, self._certificate.subject, key.public_key())
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        if names := [_alternative_name(name) for name in sans]:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        stem = common_name.replace(":", "-").replace("/", "-")
        return Certificate(
            cert=self._store(f"{stem}.crt", builder.sign(self._key, hashes.SHA256())),
            key=_write(self._folder / f"{stem}.key", _private_pem(key)),
        )


def service_account_keys(folder: Path) -> tuple[Path, Path]:
    """Write sa.key and sa.pub: with RSA, token signatures are what clusters usually have."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return _write(folder / "sa.key", _private_pem(key)), _write(folder / "sa.pub", public)
