"""Every write of ours to kube-apiserver, each as one request that cannot hit the wrong object.

All patches test the uid, so a namesake that came later is refused by the apiserver, and
none reads before it writes.
"""

from datetime import timedelta
from typing import Any

import msgspec

from gpusession.api.cluster import OwnerReference
from gpusession.api.session import (
    BIND_INTENT_ANNOTATION,
    FINALIZER,
    GROUP,
    KIND,
    PLURAL,
    VERSION,
    Metadata,
    Session,
    SessionStatus,
)
from gpusession.errors import GpuSessionError, Stale
from gpusession.kube.client import JSON_PATCH, KubeClient
from gpusession.kube.reader import workload_path

COMPONENT = "gpusession-controller"
"""Who an Event says it comes from."""

_session = msgspec.json.Decoder(Session)


class KubeWriter:
    """The verbs. All raise ApiUnavailable, Stale or Refused; all may be repeated."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client

    async def hold(self, seen: Metadata, *, intent: str | None) -> Session:
        """Add our finalizer and the intent to bind, unless the object moved meanwhile."""
        patch = [_test("/metadata/uid", seen.uid)]
        if FINALIZER not in seen.finalizers:
            patch += _adding_finalizer(seen)
        if intent is not None:
            patch += _adding_annotation(seen, BIND_INTENT_ANNOTATION, intent)
        return await self._patch(seen, "", patch)

    async def record_status(self, seen: Metadata, status: SessionStatus) -> Session:
        """Write the whole status; its transition rules may refuse a deposed writer.

        Not as a merge patch: the status endpoint ignores the uid in one, so that a namesake
        would be written to, and a field that the new status leaves out would stay.
        """
        patch = [
            _test("/metadata/uid", seen.uid),
            {"op": "add", "path": "/status", "value": msgspec.to_builtins(status)},
        ]
        return await self._patch(seen, "/status", patch)

    async def drop_finalizer(self, seen: Metadata) -> Session:
        """Remove our finalizer and no other; the object may be gone right after."""
        if FINALIZER not in seen.finalizers:
            raise Stale(f"{seen.namespace}/{seen.name} no longer has our finalizer")
        path = f"/metadata/finalizers/{seen.finalizers.index(FINALIZER)}"
        patch = [
            _test("/metadata/uid", seen.uid),
            _test(path, FINALIZER),
            {"op": "remove", "path": path},
        ]
        return await self._patch(seen, "", patch)

    async def delete_session(self, seen: Metadata) -> None:
        """Delete this very Session; one that is gone already is fine."""
        await self._delete(_path_of(seen), {"preconditions": {"uid": seen.uid}})

    async def delete_pod(self, namespace: str, name: str, *, uid: str, grace: timedelta) -> None:
        """Delete this very Pod; one that is gone or replaced already is fine."""
        await self._delete(
            f"/api/v1/namespaces/{namespace}/pods/{name}",
            {"gracePeriodSeconds": int(grace.total_seconds()), "preconditions": {"uid": uid}},
        )

    async def scale(
        self, namespace: str, owner: OwnerReference, *, version: str, replicas: int
    ) -> None:
        """Set how many Pods an owner wants, unless it has changed since this version."""
        patch = [
            _test("/metadata/uid", owner.uid),
            _test("/metadata/resourceVersion", version),
            {"op": "add", "path": "/spec/replicas", "value": replicas},
        ]
        path = f"{workload_path(namespace, owner)}/scale"
        await self._client.send("PATCH", path, body=patch, content_type=JSON_PATCH)

    async def announce(
        self, seen: Metadata, *, reason: str, message: str, at: str, about: str = ""
    ) -> bool:
        """Publish one Event about a Session; False where it could not be.

        The name is made of the uid and of what it is about, the end where that is empty, so
        that a repeat finds it there. A terminating namespace refuses it: an Event is news,
        not evidence.
        """
        name = ".".join(part for part in (seen.name, seen.uid, about.lower()) if part)
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": seen.namespace},
            "involvedObject": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": KIND,
                "namespace": seen.namespace,
                "name": seen.name,
                "uid": seen.uid,
            },
            "type": "Normal",
            "reason": reason,
            "message": message[:1024],
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
        try:
            await self._client.send(
                "POST", f"/api/v1/namespaces/{seen.namespace}/events", body=event
            )
        except Stale:
            return True  # 409: an earlier try got through
        except GpuSessionError:
            return False
        return True

    async def _patch(self, seen: Metadata, sub: str, patch: list[dict[str, Any]]) -> Session:
        answer = await self._client.send(
            "PATCH", _path_of(seen) + sub, body=patch, content_type=JSON_PATCH
        )
        return _session.decode(answer)

    async def _delete(self, path: str, options: dict[str, Any]) -> None:
        try:
            await self._client.send(
                "DELETE", path, body={"apiVersion": "v1", "kind": "DeleteOptions"} | options
            )
        except Stale:
            return  # 404, or 409 because another object has the name now


def _path_of(seen: Metadata) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{seen.namespace}/{PLURAL}/{seen.name}"


def _test(path: str, value: Any) -> dict[str, Any]:
    return {"op": "test", "path": path, "value": value}


def _adding_finalizer(seen: Metadata) -> list[dict[str, Any]]:
    if seen.finalizers:
        # Held to what was seen, since a repeat whose first answer was lost would add a second.
        return [
            _test("/metadata/finalizers", list(seen.finalizers)),
            {"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER},
        ]
    # `add` would overwrite a list that someone else made meanwhile: hold to the version.
    return [
        _test("/metadata/resourceVersion", seen.resource_version),
        {"op": "add", "path": "/metadata/finalizers", "value": [FINALIZER]},
    ]


def _adding_annotation(seen: Metadata, key: str, value: str) -> list[dict[str, Any]]:
    if seen.annotations:
        escaped = key.replace("~", "~0").replace("/", "~1")
        return [{"op": "add", "path": f"/metadata/annotations/{escaped}", "value": value}]
    return [
        _test("/metadata/resourceVersion", seen.resource_version),
        {"op": "add", "path": "/metadata/annotations", "value": {key: value}},
    ]
