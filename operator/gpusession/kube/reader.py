"""Look-ups at kube-apiserver: always from etcd, never from a cache.

"Not found" is evidence only when it comes from here.
"""

from collections.abc import AsyncIterator

import msgspec

from gpusession.api.cluster import SCALABLE, Node, OwnerReference, Pod, Scale, Workload
from gpusession.api.session import GROUP, PLURAL, VERSION
from gpusession.errors import ApiUnavailable
from gpusession.kube.client import KubeClient

SESSIONS = f"/apis/{GROUP}/{VERSION}/{PLURAL}"

PAGE = 500
"""Objects per page, as kubectl and client-go's pager ask for."""

_pod = msgspec.json.Decoder(Pod)
_node = msgspec.json.Decoder(Node)
_workload = msgspec.json.Decoder(Workload)
_scale = msgspec.json.Decoder(Scale)


def workload_path(namespace: str, owner: OwnerReference) -> str:
    """Say where an owner of a scalable kind is found."""
    base = "/api" if owner.api_version == "v1" else "/apis"
    plural = SCALABLE[owner.api_version, owner.kind]
    return f"{base}/{owner.api_version}/namespaces/{namespace}/{plural}/{owner.name}"


class _ListMeta(msgspec.Struct, frozen=True):
    continue_: str = msgspec.field(default="", name="continue")


class _SessionList(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: tuple[msgspec.Raw, ...]


class _PodList(msgspec.Struct, frozen=True):
    items: tuple[Pod, ...]


class KubeReader:
    """Reads single objects and lists; every method may raise ApiUnavailable."""

    def __init__(self, client: KubeClient, *, page: int = PAGE) -> None:
        self._client = client
        self._page = str(page)

    async def pod(self, namespace: str, name: str) -> Pod | None:
        """Return the Pod, or None when the apiserver says that it does not exist."""
        body = await self._client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
        return None if body is None else _pod.decode(body)

    async def node(self, name: str) -> Node | None:
        """Return the Node, or None when the apiserver says that it does not exist."""
        body = await self._client.get(f"/api/v1/nodes/{name}")
        return None if body is None else _node.decode(body)

    async def workload(self, namespace: str, owner: OwnerReference) -> Workload | None:
        """Return the very owner that is referred to, or None when it is gone or replaced."""
        body = await self._client.get(workload_path(namespace, owner))
        found = None if body is None else _workload.decode(body)
        return found if found is not None and found.metadata.uid == owner.uid else None

    async def pods_of(self, namespace: str, owner: OwnerReference) -> tuple[Pod, ...]:
        """Return the Pods that an owner's scale counts: one page of them, as of now."""
        body = await self._client.get(f"{workload_path(namespace, owner)}/scale")
        selector = "" if body is None else _scale.decode(body).status.selector
        params = {"labelSelector": selector, "limit": self._page}
        found = await self._client.get(f"/api/v1/namespaces/{namespace}/pods", params)
        return () if found is None else msgspec.json.decode(found, type=_PodList).items

    async def session(self, namespace: str, name: str) -> bytes | None:
        """Return the Session as JSON, or None when it does not exist."""
        return await self._client.get(
            f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{name}"
        )

    async def sessions(self) -> AsyncIterator[msgspec.Raw]:
        """Yield every Session of the cluster as JSON, page by page."""
        token = ""
        while True:
            params = {"limit": self._page} | ({"continue": token} if token else {})
            body = await self._client.get(SESSIONS, params)
            if body is None:
                raise ApiUnavailable("the Session resource is not installed: apply crds/ first")
            page = msgspec.json.decode(body, type=_SessionList)
            for item in page.items:
                yield item
            token = page.metadata.continue_
            if not token:
                return
