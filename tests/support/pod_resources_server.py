"""kubelet's PodResources API, v1, on a unix socket: part of the simulated kubelet, or alone.

    python -m tests.support.pod_resources_server SOCKET PODS [--get served|unimplemented|disabled]

PODS is a JSON file, read for each question: {"namespace/name": {"resource": ["device id"]}}; a
resource `claim:DRIVER` stands for a ResourceClaim. It prints `ready` when it listens.
"""

import argparse
import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

GET_MODES = ("served", "unimplemented", "disabled")

Pods = Mapping[tuple[str, str], Mapping[str, Sequence[str]]]
"""What each Pod has, by namespace and name: device ids by resource."""

STRING, INT64, UINT64 = "TYPE_STRING", "TYPE_INT64", "TYPE_UINT64"

API: dict[str, dict[str, tuple[int, str, bool]]] = {
    "ListPodResourcesRequest": {},
    "ListPodResourcesResponse": {"pod_resources": (1, "PodResources", True)},
    "GetPodResourcesRequest": {"pod_name": (1, STRING, False), "pod_namespace": (2, STRING, False)},
    "GetPodResourcesResponse": {"pod_resources": (1, "PodResources", False)},
    "PodResources": {
        "name": (1, STRING, False),
        "namespace": (2, STRING, False),
        "containers": (3, "ContainerResources", True),
    },
    "ContainerResources": {
        "name": (1, STRING, False),
        "devices": (2, "ContainerDevices", True),
        "cpu_ids": (3, INT64, True),
        "memory": (4, "ContainerMemory", True),
        "dynamic_resources": (5, "DynamicResource", True),
    },
    "ContainerMemory": {
        "memory_type": (1, STRING, False),
        "size": (2, UINT64, False),
        "topology": (3, "TopologyInfo", False),
    },
    "ContainerDevices": {
        "resource_name": (1, STRING, False),
        "device_ids": (2, STRING, True),
        "topology": (3, "TopologyInfo", False),
    },
    "TopologyInfo": {"nodes": (1, "NUMANode", True)},
    "NUMANode": {"ID": (1, INT64, False)},
    "DynamicResource": {
        "claim_name": (2, STRING, False),
        "claim_namespace": (3, STRING, False),
        "claim_resources": (4, "ClaimResource", True),
    },
    "ClaimResource": {
        "cdi_devices": (1, "CDIDevice", True),
        "driver_name": (2, STRING, False),
        "pool_name": (3, STRING, False),
        "device_name": (4, STRING, False),
    },
    "CDIDevice": {"name": (1, STRING, False)},
}
"""The whole API as kubelet 1.36 has it, and not the client's own excerpt of it: a wrong number
there must not meet the same wrong number here. Name: number, type, whether it is repeated."""


def described(messages: Mapping[str, Any] = API) -> Mapping[str, Any]:
    """Give the classes of the messages."""
    file = descriptor_pb2.FileDescriptorProto(name="served.proto", package="v1", syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            label = "LABEL_REPEATED" if repeated else "LABEL_OPTIONAL"
            entry = {"name": field, "number": number, "label": label}
            of = {"type": kind} if kind.startswith("TYPE_") else {"typeName": f".v1.{kind}"}
            json_format.ParseDict(entry | of, message.field.add())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = ((name, pool.FindMessageTypeByName(f"v1.{name}")) for name in messages)
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found}


MESSAGES = described()


def encode(message: str, **fields: Any) -> bytes:
    """Give a message on the wire."""
    encoded: bytes = json_format.ParseDict(fields, MESSAGES[message]()).SerializeToString()
    return encoded


def pod_resources(namespace: str, name: str, devices: Mapping[str, Sequence[str]]) -> Any:
    """Say what a Pod has as kubelet says it: devices on a NUMA node, and some CPUs beside."""
    container: dict[str, Any] = {"name": "main", "devices": [], "cpu_ids": [0, 1]}
    container["memory"] = [{"memory_type": "memory", "size": 2**30}]
    for resource, ids in devices.items():
        kind, _, driver = resource.partition(":")
        if kind == "claim":
            claims = [{"driver_name": driver, "device_name": id_} for id_ in ids]
            container["dynamic_resources"] = [{"claim_name": "gpu", "claim_resources": claims}]
        else:
            topology = {"nodes": [{"ID": 0}]}
            entry = {"resource_name": resource, "device_ids": list(ids), "topology": topology}
            container["devices"].append(entry)
    return {"name": name, "namespace": namespace, "containers": [container]}


class PodResourcesServer:
    """Serves while its with block lasts."""

    def __init__(self, socket: Path, pods: Callable[[], Pods], *, get: str = "served") -> None:
        self._socket = socket
        self._pods = pods
        self._get_mode = get

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        methods = {"List": grpc.unary_unary_rpc_method_handler(self._list)}
        if self._get_mode != "unimplemented":
            methods["Get"] = grpc.unary_unary_rpc_method_handler(self._get)
        service = grpc.method_handlers_generic_handler("v1.PodResourcesLister", methods)
        self._server.add_generic_rpc_handlers((service,))
        self._socket.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(grace=None)

    async def _list(self, _request: bytes, _context: Any) -> bytes:
        pods = [pod_resources(*pod, devices) for pod, devices in self._pods().items()]
        return encode("ListPodResourcesResponse", pod_resources=pods)

    async def _get(self, request: bytes, context: Any) -> bytes:
        asked = MESSAGES["GetPodResourcesRequest"].FromString(request)
        pod, pods = (asked.pod_namespace, asked.pod_name), self._pods()
        if self._get_mode == "disabled":
            await context.abort(grpc.StatusCode.UNKNOWN, "PodResources API Get method disabled")
        if pod not in pods:
            message = f"pod {asked.pod_name} in namespace {asked.pod_namespace} not found"
            await context.abort(grpc.StatusCode.UNKNOWN, message)
        return encode("GetPodResourcesResponse", pod_resources=pod_resources(*pod, pods[pod]))


def _read(file: Path) -> Pods:
    read = json.loads(file.read_text(encoding="utf-8"))
    return {(name.split("/")[0], name.split("/")[1]): devices for name, devices in read.items()}


async def _serve(asked: argparse.Namespace) -> None:
    async with PodResourcesServer(asked.socket, lambda: _read(asked.pods), get=asked.get):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="kubelet's PodResources API.")
    parser.add_argument("socket", type=Path)
    parser.add_argument("pods", type=Path)
    parser.add_argument("--get", choices=GET_MODES, default="served")
    asyncio.run(_serve(parser.parse_args()))
