"""Ways into a real cluster for tests of our own clients: an admin in one namespace, and us."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from tests.support import session_api
from tests.support.control_plane import ControlPlane

from gpusession.api.cluster import Node, Pod, Workload
from gpusession.api.session import GROUP, VERSION, Session
from gpusession.errors import ApiUnavailable
from gpusession.kube.client import KubeClient
from gpusession.kube.connection import KubeConnection

Object = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"

PATIENCE = 15.0
"""A guard against hanging below the limit of a test, not a figure."""


@asynccontextmanager
async def kube_client(
    kubeconfig: Path,
    *,
    timeout: float = 5.0,  # noqa: ASYNC109 - of each request
    watch_silence: float = 75.0,
) -> AsyncIterator[KubeClient]:
    """Give a client of ours that logs in with this kubeconfig."""
    connection = KubeConnection(kubeconfig, timeout=timedelta(seconds=timeout))
    await connection.load()
    async with connection.session(connections=8) as session:
        yield KubeClient(
            session, server=connection.server, watch_silence=timedelta(seconds=watch_silence)
        )
    await asyncio.sleep(0.02)  # aiohttp does not wait for the end of its TLS connections


@contextmanager
def paused(plane: ControlPlane) -> Iterator[None]:
    """Freeze kube-apiserver for a moment: connections stay open, nothing is answered."""
    plane.processes["kube-apiserver"].pause()
    try:
        yield
    finally:
        plane.processes["kube-apiserver"].resume()


@asynccontextmanager
async def running(*coroutines: Any) -> AsyncIterator[None]:
    """Run something beside the with block, cancelled at its end."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(predicate: Callable[[], object], *, what: str) -> None:
    """Wait until something is so; whoever makes it so runs in this loop."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not predicate():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {PATIENCE:g} s") from None


class Cluster:
    """One namespace, in the hands of an admin whom no policy of ours holds back."""

    def __init__(self, admin: KubeClient, namespace: str) -> None:
        self.admin = admin
        self.namespace = namespace

    async def session(self, name: str, *, finalizers: tuple[str, ...] = (), **spec: Any) -> Session:
        """Create a Session."""
        manifest = session_api.session(name, self.namespace, **spec)
        manifest["metadata"]["finalizers"] = list(finalizers)
        answer = await self.admin.send("POST", self._path("sessions"), body=manifest)
        return msgspec.json.decode(answer, type=Session)

    async def pod(self, name: str, *, use: str | None = "exclusive") -> Pod:
        """Create a Pod and say that it runs."""
        labels = {} if use is None else {"gpusession.dev/use": use}
        manifest = session_api.pod(name, self.namespace, labels)
        await self.admin.send("POST", self._path("pods"), body=manifest)
        return await self.set_pod_phase(name, "Running")

    async def workload(self, kind: str, name: str, *, replicas: int = 1, **spec: Any) -> Workload:
        """Create an owner of Pods, whose controller then makes them; `owner` is its own."""
        group, plural = ("", "replicationcontrollers")
        if kind != "ReplicationController":
            group, plural = "apps/", f"{kind.lower()}s"
        metadata: Object = {"name": name, "ownerReferences": spec.pop("owners", [])}
        labels = {"app": name}
        manifest = {
            "apiVersion": f"{group}v1",
            "kind": kind,
            "metadata": metadata,
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels} if group else labels,
                "template": {
                    "metadata": {"labels": labels | {"gpusession.dev/use": "exclusive"}},
                    "spec": session_api.pod(name, self.namespace)["spec"],
                },
                **spec,
            },
        }
        base = f"/api{'s' if group else ''}/{group}v1/namespaces/{self.namespace}"
        answer = await self.admin.send("POST", f"{base}/{plural}", body=manifest)
        return msgspec.json.decode(answer, type=Workload)

    async def pods_of(self, name: str, count: int = 1) -> list[Pod]:
        """Wait until an owner's controller has made its Pods; sorted by name."""
        async with asyncio.timeout(PATIENCE):
            while True:
                body = await self.admin.get(self._path("pods"), {"labelSelector": f"app={name}"})
                items = json.loads(body or b"{}")["items"]
                if len(items) == count:
                    pods = [msgspec.convert(item, Pod) for item in items]
                    return sorted(pods, key=lambda pod: pod.metadata.name)
                await asyncio.sleep(0.05)

    async def settled(self, replica_set: str, count: int = 1) -> str:
        """Wait until a ReplicaSet has made its Pods and said so; gives its version then."""
        await self.pods_of(replica_set, count)
        path = f"/apis/apps/v1/namespaces/{self.namespace}/replicasets/{replica_set}"
        async with asyncio.timeout(PATIENCE):
            while True:
                found = json.loads(await self.admin.get(path) or b"{}")
                if found["status"].get("replicas") == count:
                    return found["metadata"]["resourceVersion"]
                await asyncio.sleep(0.05)

    async def set_pod_phase(self, name: str, phase: str) -> Pod:
        """Report a Pod's phase, as its kubelet would."""
        answer = await self.patch("pods", name, {"status": {"phase": phase}}, sub="/status")
        return msgspec.convert(answer, Pod)

    async def remove_pod(self, name: str) -> None:
        """Remove a Pod at once, as its kubelet would in the end."""
        await self.delete("pods", name, gracePeriodSeconds=0)

    async def node(self, name: str) -> Node:
        """Create a Node."""
        manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        answer = await self.admin.send("POST", "/api/v1/nodes", body=manifest)
        return msgspec.json.decode(answer, type=Node)

    async def read(self, kind: str, name: str) -> Object | None:
        """Read an object from etcd."""
        body = await self.admin.get(self._path(kind, name))
        return None if body is None else json.loads(body)

    async def read_session(self, name: str) -> Session | None:
        """Read a Session from etcd as the operator reads it."""
        found = await self.read("sessions", name)
        return None if found is None else msgspec.convert(found, Session)

    async def events(self) -> list[Object]:
        """Read the Events of the namespace."""
        body = await self.admin.get(self._path("events"))
        return json.loads(body or b"{}")["items"]

    async def patch(self, kind: str, name: str, change: Object, *, sub: str = "") -> Object:
        """Merge a change into an object."""
        path = self._path(kind, name) + sub
        answer = await self.admin.send("PATCH", path, body=change, content_type=MERGE_PATCH)
        return json.loads(answer)

    async def delete(self, kind: str, name: str, **options: Any) -> None:
        """Ask for an object's deletion."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        await self.admin.send("DELETE", self._path(kind, name), body=body)

    async def wait_for_apiserver(self) -> None:
        """Wait for an apiserver that has just been started."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(ApiUnavailable):
                    await self.admin.get("/api/v1/namespaces/default")
                    return
                await asyncio.sleep(0.1)

    def _path(self, kind: str, name: str = "") -> str:
        if kind == "nodes":
            return f"/api/v1/nodes/{name}"
        base = f"/apis/{GROUP}/{VERSION}" if kind == "sessions" else "/api/v1"
        return f"{base}/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")
