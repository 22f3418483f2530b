"""A server's certificate, read again when its files change.

cert-manager and kubelet replace the files of a mounted Secret; a restart for that would
cut every connection. Connections that are open keep what they began with.
"""

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path

import structlog

from gpusession.errors import Misconfigured

PERIOD = timedelta(seconds=30)
"""Between two looks at the files: kubelet itself takes a minute to bring a new Secret."""

log = structlog.get_logger(__name__)


class ServerCertificate:
    """Holds the TLS context of the server; raises Misconfigured where it cannot be made."""

    def __init__(self, cert_file: Path, key_file: Path, *, period: timedelta = PERIOD) -> None:
        self._files = (cert_file, key_file)
        self._period = period
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            self._seen = self._load()
        except OSError as error:  # ssl.SSLError is one
            raise Misconfigured(f"no usable certificate {cert_file}: {error}") from error

    async def run(self) -> None:
        """Follow the files for ever; what cannot be read leaves the last good pair in use."""
        while True:
            await asyncio.sleep(self._period.total_seconds())
            try:
                if self._version() != self._seen:
                    self._seen = self._load()
                    log.info("certificate read again", file=str(self._files[0]))
            except OSError as error:
                log.warning("certificate not read again", error=str(error))

    def _load(self) -> tuple[bytes, bytes]:
        version = self._version()
        # Into a context of its own first: a pair that does not fit must not spoil the old one.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*self._files)
        self.context.load_cert_chain(*self._files)
        return version

    def _version(self) -> tuple[bytes, bytes]:
        cert_file, key_file = self._files
        return cert_file.read_bytes(), key_file.read_bytes()
