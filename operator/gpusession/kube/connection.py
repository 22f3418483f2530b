"""Who we are for kube-apiserver: address, CA, and a token that is read again in time.

`kubernetes.aio` parses the kubeconfig or the pod's ServiceAccount; the requests are sent
by aiohttp directly, which costs a third of the client's CPU per call (notes of the
project's research: 159 against 542 microseconds).
"""

import asyncio
import ssl
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import aiohttp
import structlog
import yaml
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from gpusession.errors import Misconfigured

TOKEN_REREAD = timedelta(seconds=60)
"""kubelet renews a projected token at 80 % of its hour; client-go rereads each minute too."""

_UNUSABLE = (kubernetes_config.ConfigException, OSError, yaml.YAMLError, TypeError, ValueError)
# The last two: kubernetes.aio takes the shape of the file on trust, an empty one too.

log = structlog.get_logger()


class KubeConnection:
    """Opens sessions that carry a current token; one per process."""

    def __init__(
        self, kubeconfig: Path | None, *, timeout: timedelta, token_reread: timedelta = TOKEN_REREAD
    ) -> None:
        self._kubeconfig = kubeconfig
        self._timeout = timeout
        self._token_reread = token_reread
        self._configuration = kubernetes_client.Configuration()
        self._read_at = float("-inf")

    @property
    def server(self) -> str:
        """Base URL of kube-apiserver."""
        return str(self._configuration.host)

    async def load(self) -> None:
        """Read kubeconfig or ServiceAccount; raises Misconfigured when there is none."""
        configuration = kubernetes_client.Configuration()
        try:
            if self._kubeconfig is None:
                kubernetes_config.load_incluster_config(
                    client_configuration=configuration, try_refresh_token=False
                )
            else:
                await kubernetes_config.load_kube_config(
                    config_file=str(self._kubeconfig),
                    client_configuration=configuration,
                    persist_config=False,
                )
        except _UNUSABLE as error:
            raise Misconfigured(
                f"no way to log in to Kubernetes: {error}; set GPUSESSION_KUBECONFIG "
                "or run in a pod with a ServiceAccount"
            ) from error
        self._configuration = configuration
        self._read_at = asyncio.get_running_loop().time()

    def session(
        self, *, connections: int, traces: Sequence[aiohttp.TraceConfig] = ()
    ) -> aiohttp.ClientSession:
        """Open a session of at most so many connections; the caller closes it.

        `traces` hear of each request, for whoever gives the session to a library.

        Raises Misconfigured where CA or client certificate cannot be read.
        """
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ssl=self._ssl_context()),
            timeout=aiohttp.ClientTimeout(total=self._timeout.total_seconds()),
            middlewares=(self._authorize,),
            trace_configs=list(traces),
            auto_decompress=True,
        )

    async def _authorize(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        now = asyncio.get_running_loop().time()
        if now - self._read_at > self._token_reread.total_seconds():
            self._read_at = now  # one request rereads; those beside it still have a good token
            await self._reload()
        token = self._configuration.api_key.get("BearerToken")
        if token:
            scheme, _, value = token.partition(" ")
            request.headers["Authorization"] = f"{scheme.capitalize()} {value.strip()}"
        return await handler(request)

    async def _reload(self) -> None:
        try:
            await self.load()
        except Misconfigured as error:
            # A file that is being replaced. The old token is good for a while yet.
            log.warning("login not read again", error=str(error))

    def _ssl_context(self) -> ssl.SSLContext:
        files = self._configuration
        try:
            context = ssl.create_default_context(cafile=files.ssl_ca_cert)
            if files.cert_file:
                context.load_cert_chain(files.cert_file, files.key_file)
        except OSError as error:
            raise Misconfigured(f"CA or client certificate of Kubernetes: {error}") from error
        return context
