"""Where a token comes from: an argument, a file, or the gateway for a Kubernetes identity.

Nothing here shows a token: no repr, no log line, no message of an error.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from gpusession.api.frames import CloseCode, TokenAnswer, TokenRequest
from gpusession.client.calls import Calls
from gpusession.client.ending import ABNORMAL, Ending
from gpusession.client.errors import TokenRefused

KUBERNETES_TOKEN_FILE = Path("/var/run/secrets/gpusession/token")
"""Where docs/clients-python.md mounts the projected ServiceAccount token."""

_FILE_POLL_SECONDS = 0.5
_COMMAND_TIMEOUT = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class KubernetesIdentity:
    """A Session by name, and a Kubernetes token (audience gpusession-gateway) of who asks.

    The token is read from `token_file` each time, or is what `token_command` prints, such
    as ("kubectl", "create", "token", "me", "--audience", "gpusession-gateway").
    """

    namespace: str
    name: str
    token_file: Path | str = KUBERNETES_TOKEN_FILE
    token_command: Sequence[str] | None = None


class Credentials(Protocol):
    """Gives the token for the next connection."""

    rotates: bool
    """Whether this client may have the token replaced: nobody else needs the old one."""

    async def token(self) -> str | Ending:
        """Give a token, or why there is none right now; raises TokenRefused for good."""

    def refused(self, token: str) -> None:
        """Hear that the gateway does not know this token (any more)."""

    def rotated(self, token: str) -> None:
        """Hear of the token that has replaced the last one."""


class GivenToken(Credentials):
    """A token by argument: once it is refused there is no other."""

    rotates = True

    def __init__(self, token: str) -> None:
        self._token = token
        self._refused = False

    @override
    async def token(self) -> str | Ending:
        if self._refused:
            raise TokenRefused("TokenUnknown", "the gateway refused the token that was given")
        return self._token

    @override
    def refused(self, token: str) -> None:
        self._refused = token == self._token

    @override
    def rotated(self, token: str) -> None:
        self._token = token


class TokenFile(Credentials):
    """A token in a file that its owner may replace; read before each connection.

    Never rotated from here: a restarted client would find a dead token in the file. Beats
    keep it alive instead.
    """

    rotates = False

    def __init__(self, path: Path, *, patience: timedelta) -> None:
        self._path = path
        self._patience = patience
        self._bad = ""

    @override
    async def token(self) -> str | Ending:
        give_up_at = asyncio.get_running_loop().time() + self._patience.total_seconds()
        while (text := self._read()) in {"", self._bad}:
            if asyncio.get_running_loop().time() >= give_up_at:
                raise TokenRefused(
                    "TokenUnknown" if text else "NoToken",
                    f"{self._path} has had no usable token for {self._patience}",
                )
            await asyncio.sleep(_FILE_POLL_SECONDS)
        return text

    @override
    def refused(self, token: str) -> None:
        self._bad = token

    @override
    def rotated(self, token: str) -> None:
        """Never asked for."""

    def _read(self) -> str:
        try:
            return self._path.read_text().strip()
        except OSError:
            return ""


class MintedToken(Credentials):
    """Tokens of the gateway's own making, as many as are needed."""

    rotates = True

    def __init__(self, identity: KubernetesIdentity, calls: Calls) -> None:
        self._identity = identity
        self._calls = calls
        self._token = ""

    @override
    async def token(self) -> str | Ending:
        if self._token:
            return self._token
        try:
            bearer = await _kubernetes_token(self._identity)
        except (OSError, TimeoutError, _CommandFailedError) as error:
            return Ending(ABNORMAL, f"no Kubernetes token: {error!r}")
        wanted = TokenRequest(namespace=self._identity.namespace, name=self._identity.name)
        answer = await self._calls.post(
            "/v1/token", TokenAnswer, bearer=bearer, body=wanted, session=None
        )
        if isinstance(answer, TokenAnswer):
            self._token = answer.token
            return self._token
        if answer.code in {CloseCode.TOKEN_REFUSED, CloseCode.WRONG_SESSION}:
            raise TokenRefused(answer.reason, "the gateway makes no token for this identity")
        return answer

    @override
    def refused(self, token: str) -> None:
        self._token = ""

    @override
    def rotated(self, token: str) -> None:
        self._token = token


class _CommandFailedError(Exception):
    """The token command ended with an error; its output may hold a token and is not told."""


async def _kubernetes_token(identity: KubernetesIdentity) -> str:
    if identity.token_command is None:
        return (await asyncio.to_thread(Path(identity.token_file).read_text)).strip()
    child = await asyncio.create_subprocess_exec(
        *identity.token_command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_COMMAND_TIMEOUT.total_seconds()):
            output, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise _CommandFailedError(f"the token command ended with {child.returncode}")
    return output.decode().strip()
