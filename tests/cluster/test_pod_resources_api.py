"""What we say of kubelet's PodResources API, against the .proto file that kubelet is built from.

Not among the default tests: it fetches gRPC's generator and a Go module. It needs no cluster.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from tests.cluster.device_plugin_stubs import WHEELS, kubelet_module
from tests.support import pod_resources_server as simulated
from tests.support.toolchain import installed_wheel

from gpusession.agent import pod_resources as agents

pytestmark = pytest.mark.timeout(180)

Fields = dict[str, tuple[int, int, str, int]]


@pytest.fixture(scope="module")
def kubelets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fields]:
    """Give the fields of kubelet's own messages, by message."""
    proto = kubelet_module() / "pkg" / "apis" / "podresources" / "v1" / "api.proto"
    compiled = tmp_path_factory.mktemp("api") / "api.binpb"
    arguments = (f"--proto_path={proto.parent}", f"--descriptor_set_out={compiled}", proto.name)
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *arguments],
        env=os.environ | {"PYTHONPATH": str(installed_wheel(WHEELS))},
        check=True,
    )
    return _read(compiled)


def _read(compiled: Path) -> dict[str, Fields]:
    found = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())
    return {message.name: _fields(message) for message in found.file[0].message_type}


def _fields(message: Any) -> Fields:
    return {f.name: (f.number, f.type, f.type_name, f.label) for f in message.field}


def _fields_of(kind: Any) -> Fields:
    message = descriptor_pb2.DescriptorProto()
    kind.DESCRIPTOR.CopyToProto(message)
    return _fields(message)


@pytest.mark.parametrize("name", sorted(agents._MESSAGES))
def test_the_agent_reads_fields_that_kubelet_has(name: str, kubelets: dict[str, Fields]) -> None:
    """Name, number, type and repetition of each field are kubelet's own."""
    assert _fields_of(agents._message(name)).items() <= kubelets[name].items()


@pytest.mark.parametrize("name", sorted(simulated.API))
def test_the_simulated_kubelet_serves_what_kubelet_serves(
    name: str, kubelets: dict[str, Fields]
) -> None:
    """Otherwise the tests would prove that two mistakes agree."""
    assert _fields_of(simulated.MESSAGES[name]).items() <= kubelets[name].items()
