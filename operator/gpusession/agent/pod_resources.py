"""Which GPUs kubelet has given to a Pod, asked over kubelet's own unix socket.

Three answers: the devices, none, or Unseen, which proves nothing and blocks nobody. What is
given is not held: only NVML tells that. The only importer of grpc and protobuf.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from gpusession.metrics import POD_RESOURCES

_SERVICE = "/v1.PodResourcesLister"

_MESSAGES = {
    "GetPodResourcesRequest": "1 pod_name, 2 pod_namespace",
    "GetPodResourcesResponse": "1 pod_resources PodResources",
    "ListPodResourcesRequest": "",
    "ListPodResourcesResponse": "1 pod_resources PodResources*",
    "PodResources": "1 name, 2 namespace, 3 containers ContainerResources*",
    "ContainerResources": "2 devices ContainerDevices*, 5 dynamic_resources DynamicResource*",
    "ContainerDevices": "1 resource_name, 2 device_ids *",
    "DynamicResource": "4 claim_resources ClaimResource*",
    "ClaimResource": "2 driver_name",
}
"""The fields of kubelet's v1 API that are read: number, name, type (string where none stands),
and a star for "repeated". protobuf skips whatever else kubelet sends."""

_RESOURCES = ("nvidia.com/gpu", "nvidia.com/mig-")
"""How the resources begin whose devices are GPUs; `nvidia.com/gpu.shared` is one of them."""

_DRA_DRIVER = "gpu.nvidia.com"
"""Gives GPUs by ResourceClaim: those have names of the driver's here, and no uuid."""

_REPLICA = "::"
"""What follows it in an id tells time-slicing's replicas of one device apart."""

_HEX = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID = re.compile(rf"(GPU|MIG)-{_HEX}|MIG-GPU-{_HEX}/\d+/\d+")
"""What NVML can be asked for; the last form is that of MIG devices before driver 470."""

_NO_GET = frozenset({grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN})
"""kubelet before 1.27 has no Get, and up to 1.35 its feature gate makes it a plain error."""

_OPTIONS = (
    ("grpc.default_authority", "localhost"),  # a path is none, and Go's server is strict
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # no channel inherits another one's backoff
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Unseen:
    """The answer of somebody who could not ask: it proves nothing."""

    detail: str


class PodResources:
    """Asks kubelet anew each time, and waits no longer than it was told to."""

    def __init__(self, kubelet_socket: Path, *, timeout: timedelta) -> None:
        self._target = f"unix:{kubelet_socket}"
        self._timeout = timeout

    async def gpus_of(self, namespace: str, name: str) -> tuple[str, ...] | Unseen:
        """Give the uuids of the GPUs and MIG devices that the Pod of this name has.

        Each question has a channel of its own, which takes a millisecond: one that is kept
        remembers a kubelet that was away, and would let it wait for up to two minutes.
        """
        try:
            async with (
                asyncio.timeout(self._timeout.total_seconds()),
                grpc.aio.insecure_channel(self._target, options=_OPTIONS) as channel,
            ):
                found = await _ask(channel, namespace, name)
        except TimeoutError:
            found = Unseen(f"kubelet gave no answer within {self._timeout}")
        except grpc.aio.AioRpcError as error:
            found = Unseen(f"kubelet: {error.code().name}: {error.details()}")
        if isinstance(found, Unseen):
            log.info("pod resources unseen", namespace=namespace, pod=name, detail=found.detail)
        POD_RESOURCES.labels(_result(found)).inc()
        return found


async def _ask(channel: grpc.aio.Channel, namespace: str, name: str) -> tuple[str, ...] | Unseen:
    request = _message("GetPodResourcesRequest")(pod_name=name, pod_namespace=namespace)
    try:
        return gpus_in_get(await _call(channel, "Get", request))
    except grpc.aio.AioRpcError as error:
        if error.code() not in _NO_GET:
            raise
    answer = await _call(channel, "List", _message("ListPodResourcesRequest")())
    return gpus_in_list(answer, namespace, name)


async def _call(channel: grpc.aio.Channel, method: str, request: Any) -> bytes:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    call = channel.unary_unary(f"{_SERVICE}/{method}")
    return await call(request.SerializeToString())


def _result(found: tuple[str, ...] | Unseen) -> str:
    if isinstance(found, Unseen):
        return "unseen"
    return "get" if found else "none"


def gpus_in_get(answer: bytes) -> tuple[str, ...] | Unseen:
    """Read a GetPodResourcesResponse."""
    try:
        response = _message("GetPodResourcesResponse").FromString(answer)
    except DecodeError as error:
        return Unseen(f"kubelet's answer is unreadable: {error}")
    return _gpus(response.pod_resources)


def gpus_in_list(answer: bytes, namespace: str, name: str) -> tuple[str, ...] | Unseen:
    """Find the Pod in a ListPodResourcesResponse."""
    try:
        response = _message("ListPodResourcesResponse").FromString(answer)
    except DecodeError as error:
        return Unseen(f"kubelet's answer is unreadable: {error}")
    for pod in response.pod_resources:
        if (pod.namespace, pod.name) == (namespace, name):
            return _gpus(pod)
    return Unseen("kubelet lists no such Pod")


def _gpus(pod: Any) -> tuple[str, ...] | Unseen:
    """Pick what NVML can be asked for; a Pod with nothing but other names is Unseen."""
    ids = {id_.partition(_REPLICA)[0] for id_ in _device_ids(pod.containers)}
    uuids = tuple(sorted(id_ for id_ in ids if _UUID.fullmatch(id_)))
    if uuids:
        return uuids
    if ids:
        return Unseen(f"kubelet knows the Pod's GPUs by names that NVML does not: {sorted(ids)}")
    if _DRA_DRIVER in _claimed_drivers(pod.containers):
        return Unseen("the Pod has its GPUs by ResourceClaim, which names no uuid")
    return ()


def _device_ids(containers: Iterable[Any]) -> Iterator[str]:
    for container in containers:
        for devices in container.devices:
            if devices.resource_name.startswith(_RESOURCES):
                yield from devices.device_ids


def _claimed_drivers(containers: Iterable[Any]) -> set[str]:
    return {
        resource.driver_name
        for container in containers
        for claim in container.dynamic_resources
        for resource in claim.claim_resources
    }


def _described() -> descriptor_pool.DescriptorPool:
    """Describe the messages to protobuf, which does all coding, in a pool of our own."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="gpusession/pod_resources.proto", package="v1", syntax="proto3"
    )
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for number, name, *rest in (words.split() for words in fields.split(",") if words):
            kind = "".join(rest)
            of = kind.removesuffix("*")
            described.field.add(
                number=int(number),
                name=name,
                type=field.TYPE_MESSAGE if of else field.TYPE_STRING,
                type_name=f".v1.{of}" if of else None,
                label=field.LABEL_REPEATED if kind != of else field.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _described()


def _message(name: str) -> Any:
    """Give the class of a message."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"v1.{name}"))
