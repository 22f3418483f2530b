"""Offers a node's simulated GPUs to its kubelet as nvidia.com/gpu; one of the node's programs.

A container that gets one sees the simulator's library, the node's state and the GPU's uuid.
grpc and the generated modules come by PYTHONPATH (device_plugin_stubs.py).
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import deviceplugin_pb2 as api
import deviceplugin_pb2_grpc as api_grpc
import grpc
from tests.cluster.places import DEVICE_PLUGINS, LIBRARY, OFFERED, STATE

ENDPOINT = "simulated-gpu.sock"

PERIOD_SECONDS = 0.05
"""A restarted kubelet deletes all sockets and waits for nobody: its GPUs are back this soon."""


class SimulatedGpus(api_grpc.DevicePluginServicer):
    """What kubelet asks about the GPUs in the state folder."""

    def GetDevicePluginOptions(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        """Ask for no further calls."""
        return api.DevicePluginOptions()

    def ListAndWatch(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802, ARG002
        """List all GPUs as healthy, for as long as kubelet listens."""
        lines = (STATE / "devices").read_text(encoding="utf-8").splitlines()
        uuids = [line.split("\t")[0] for line in lines]
        yield api.ListAndWatchResponse(
            devices=[api.Device(ID=uuid, health="Healthy") for uuid in uuids]
        )
        time.sleep(PERIOD_SECONDS)  # kubelet has the list before anything waits for this
        OFFERED.touch()
        while context.is_active():
            time.sleep(PERIOD_SECONDS)

    def Allocate(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        """Give each container its GPUs by name, and the library that shows them."""
        answers = [_allocation(asked.devices_ids) for asked in request.container_requests]
        return api.AllocateResponse(container_responses=answers)


def _allocation(uuids: list[str]) -> Any:
    mounts = [
        api.Mount(container_path=str(path), host_path=str(path), read_only=path == LIBRARY)
        for path in (STATE, LIBRARY)
    ]
    environment = {
        "NVIDIA_VISIBLE_DEVICES": ",".join(sorted(uuids)),
        "NVML_SIMULATOR_STATE": str(STATE),
        "LD_LIBRARY_PATH": str(LIBRARY),
    }
    return api.ContainerAllocateResponse(envs=environment, mounts=mounts)


def _register() -> None:
    request = api.RegisterRequest(
        version="v1beta1", endpoint=ENDPOINT, resource_name="nvidia.com/gpu"
    )
    with grpc.insecure_channel(f"unix:{DEVICE_PLUGINS / 'kubelet.sock'}") as kubelet:
        api_grpc.RegistrationStub(kubelet).Register(request, timeout=5)


def _serve_until_kubelet_restarts() -> None:
    own = DEVICE_PLUGINS / ENDPOINT
    own.unlink(missing_ok=True)
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        api_grpc.add_DevicePluginServicer_to_server(SimulatedGpus(), server)
        server.add_insecure_port(f"unix:{own}")
        server.start()
        try:
            _register()
            print("registered", flush=True)
            while own.exists():
                time.sleep(PERIOD_SECONDS)
        finally:
            server.stop(grace=None).wait()


def main() -> None:
    """Register with every kubelet that comes, until killed."""
    DEVICE_PLUGINS.mkdir(parents=True, exist_ok=True)
    while True:
        if (DEVICE_PLUGINS / "kubelet.sock").exists():
            with contextlib.suppress(grpc.RpcError):
                _serve_until_kubelet_restarts()
        time.sleep(PERIOD_SECONDS)


if __name__ == "__main__":
    main()
