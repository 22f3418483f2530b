"""Reads and writes one coordination.k8s.io Lease; it decides nothing."""

import msgspec

from gpusession.api.cluster import Lease, LeaseMeta, LeaseSpec
from gpusession.kube.client import KubeClient

_lease = msgspec.json.Decoder(Lease)


class LeaseClient:
    """One Lease by name. All methods raise ApiUnavailable, Stale (somebody was faster), Refused."""

    def __init__(self, client: KubeClient, *, namespace: str, name: str) -> None:
        self._client = client
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name

    async def read(self) -> Lease | None:
        """Return the Lease, None when there is none yet."""
        body = await self._client.get(f"{self._path}/{self._name}")
        return None if body is None else _lease.decode(body)

    async def create(self, spec: LeaseSpec) -> Lease:
        """Make the Lease; Stale when somebody else just did."""
        metadata = LeaseMeta(name=self._name)
        return await self._write("POST", self._path, metadata, spec)

    async def replace(self, seen: Lease, spec: LeaseSpec) -> Lease:
        """Write the Lease as it was seen and no other version; Stale when it has moved."""
        return await self._write("PUT", f"{self._path}/{self._name}", seen.metadata, spec)

    async def _write(self, method: str, path: str, metadata: LeaseMeta, spec: LeaseSpec) -> Lease:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": msgspec.to_builtins(metadata),
            "spec": msgspec.to_builtins(spec),
        }
        return _lease.decode(await self._client.send(method, path, body=body))
