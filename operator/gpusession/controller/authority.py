"""The authority that signs the agents' certificates, read again when its file changes.

A restart for that would hand the Lease over. A call under way keeps the connection that it
began with; the next one opens its own and insists on the new authority.
"""

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path

import structlog

from gpusession.errors import Misconfigured

PERIOD = timedelta(seconds=2)
"""Between two looks at the file: until then agents with new certificates seem unreachable."""

log = structlog.get_logger()


class AgentAuthority:
    """Holds the TLS context of calls; raises Misconfigured where it cannot be made."""

    def __init__(self, ca_file: Path, *, period: timedelta = PERIOD) -> None:
        self._file = ca_file
        self._period = period
        self._trouble = ""
        try:
            self._seen, self._context = self._load()
        except OSError as error:  # ssl.SSLError is one
            raise Misconfigured(f"agent_ca_file {ca_file}: {error}") from error

    def context(self) -> ssl.SSLContext:
        """Give what the next connection is checked by: another one after each change."""
        return self._context

    async def run(self) -> None:
        """Follow the file for ever; what cannot be read leaves the last good one in use."""
        while True:
            try:
                if self._file.read_bytes() != self._seen:
                    self._seen, self._context = self._load()
                    log.info("agents' authority read again", file=str(self._file))
                self._trouble = ""
            except OSError as error:
                if str(error) != self._trouble:  # once, and not every two seconds
                    log.warning("agents' authority not read again", error=str(error))
                self._trouble = str(error)
            await asyncio.sleep(self._period.total_seconds())

    def _load(self) -> tuple[bytes, ssl.SSLContext]:
        content = self._file.read_bytes()
        # Should the file change in between, its content differs at the next look.
        return content, ssl.create_default_context(cafile=str(self._file))
