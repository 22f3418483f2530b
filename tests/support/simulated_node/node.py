"""The node itself: what its Pods share, its Node object and its Lease."""

import asyncio
import itertools
import os
import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.nvml_simulator import SimulatedNode
from tests.support.simulated_node.api import Api
from tests.support.simulated_node.pod_status import timestamp
from tests.support.simulated_node.process_files import ProcessFiles

LEASE_SECONDS = 40
"""kubelet's nodeLeaseDurationSeconds."""

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
VERSION = "v1.36.0"
NOT_FOUND = 404

Object = dict[str, Any]


def device_uuid(node_name: str, index: int) -> str:
    """Give the uuid that a simulated node's GPU has at every start."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'gpu-{index}.{node_name}.gpusession.dev')}"


def plug_in_devices(
    state_dir: Path, node_name: str, *, count: int, memory_bytes: int
) -> SimulatedNode:
    """Describe a node's GPUs to the NVML simulator; the same call gives the same files."""
    simulated = SimulatedNode(state_dir)
    for index in range(count):
        simulated.add_device(device_uuid(node_name, index), total_bytes=memory_bytes)
    return simulated


class Devices:
    """Which Pod has which GPU: the one with the fewest Pods is next, and all are shared."""

    def __init__(self, uuids: list[str]) -> None:
        self.uuids = uuids
        self._given: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    def assign(self, pod_uid: str) -> str:
        """Give a Pod its GPU."""
        taken = list(self._given.values())
        uuid = min(self.uuids, key=taken.count)
        self._given[pod_uid] = uuid
        ids = (f"{uuid}::{replica}" for replica in itertools.count())
        self._ids[pod_uid] = next(id_ for id_ in ids if id_ not in self._ids.values())
        return uuid

    def ids(self, pod_uid: str) -> list[str]:
        """Give the ids by which kubelet knows what a Pod has: replicas, as GPUs are shared."""
        return [self._ids[pod_uid]] if pod_uid in self._ids else []

    def give_back(self, pod_uid: str) -> None:
        """Take note that a Pod is over."""
        self._given.pop(pod_uid, None)
        self._ids.pop(pod_uid, None)


@dataclass(frozen=True, slots=True)
class SimulatedNodeParts:
    """What every Pod of the node uses."""

    name: str
    address: str
    root: Path
    boot_id: str
    api: Api
    files: ProcessFiles
    devices: Devices
    environment: Mapping[str, str]


async def register(node: SimulatedNodeParts) -> None:
    """Create the Node object, or take over the one that is there, and its Lease."""
    labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": _architecture(),
    }
    metadata = {"name": node.name, "labels": labels}
    await node.api.create(
        "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
    )
    await _report(node, time.time(), since=time.time())
    await _renew(node)


async def keep_alive(node: SimulatedNodeParts, *, period: float) -> None:
    """Renew Lease and Node status for ever."""
    since = time.time()
    while True:
        await asyncio.sleep(period)
        await _renew(node)
        await _report(node, time.time(), since=since)


async def _renew(node: SimulatedNodeParts) -> None:
    now = time.time()
    spec = {
        "holderIdentity": node.name,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": f"{timestamp(now)[:-1]}.{int(now % 1 * 1e6):06d}Z",
    }
    answer = await node.api.patch(f"{LEASES}/{node.name}", {"spec": spec})
    if answer.status == NOT_FOUND:
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        metadata = {"name": node.name, "namespace": "kube-node-lease"}
        await node.api.create(LEASES, lease | {"metadata": metadata, "spec": spec})


async def _report(node: SimulatedNodeParts, now: float, *, since: float) -> None:
    conditions = [
        {
            "type": kind,
            "status": str(kind == "Ready"),
            "reason": "KubeletReady" if kind == "Ready" else f"KubeletHasNo{kind}",
            "message": "simulated",
            "lastHeartbeatTime": timestamp(now),
            "lastTransitionTime": timestamp(since),
        }
        for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resources = {
        "cpu": str(os.cpu_count()),
        "memory": f"{memory // 1024}Ki",
        "pods": "1000",
        "nvidia.com/gpu": str(len(node.devices.uuids)),
    }
    status: Object = {
        "addresses": [
            {"type": "InternalIP", "address": node.address},
            {"type": "Hostname", "address": node.name},
        ],
        "capacity": resources,
        "allocatable": resources,
        "conditions": conditions,
        "nodeInfo": {
            "bootID": node.boot_id,
            "machineID": uuid.uuid5(uuid.NAMESPACE_DNS, node.name).hex,
            "systemUUID": str(uuid.uuid5(uuid.NAMESPACE_DNS, node.name)),
            "kernelVersion": platform.release(),
            "osImage": "simulated node",
            "containerRuntimeVersion": "containerd://simulated",
            "kubeletVersion": VERSION,
            "kubeProxyVersion": VERSION,
            "operatingSystem": "linux",
            "architecture": _architecture(),
        },
    }
    await node.api.patch(f"/api/v1/nodes/{node.name}/status", {"status": status})


def _architecture() -> str:
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    return names.get(platform.machine(), platform.machine())
