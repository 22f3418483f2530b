"""What kubelet's answers say of a Pod's GPUs, from the bytes that it sends."""

from collections.abc import Mapping, Sequence

import pytest
from tests.support.pod_resources_server import encode, pod_resources

from gpusession.agent.pod_resources import Unseen, gpus_in_get, gpus_in_list

GPU = "GPU-5a2c0000-0000-4000-8000-000000000000"
OTHER_GPU = "GPU-5a2c0000-0000-4000-8000-000000000001"
MIG = "MIG-5a2c0000-0000-4000-8000-0000000000aa"
OLD_MIG = f"MIG-{GPU}/7/0"


def _get(devices: Mapping[str, Sequence[str]]) -> tuple[str, ...] | Unseen:
    pod = pod_resources("default", "pod", devices)
    return gpus_in_get(encode("GetPodResourcesResponse", pod_resources=pod))


@pytest.mark.parametrize(
    ("devices", "uuids"),
    [
        ({"nvidia.com/gpu": [GPU]}, (GPU,)),
        ({"nvidia.com/gpu": [OTHER_GPU, GPU]}, (GPU, OTHER_GPU)),
        ({"nvidia.com/gpu": [f"{GPU}::3", f"{GPU}::11"]}, (GPU,)),
        ({"nvidia.com/gpu.shared": [f"{GPU}::0"]}, (GPU,)),
        ({"nvidia.com/mig-1g.10gb": [MIG]}, (MIG,)),
        ({"nvidia.com/mig-2g.20gb": [OLD_MIG]}, (OLD_MIG,)),
        ({"nvidia.com/gpu": [GPU, "1"]}, (GPU,)),
        ({"nvidia.com/gpu": [GPU], "example.com/nic": ["eth1"]}, (GPU,)),
    ],
    ids=["one", "two", "replicas", "shared", "mig", "old mig", "beside an index", "beside a nic"],
)
def test_given_devices_come_as_uuids(
    devices: Mapping[str, Sequence[str]], uuids: tuple[str, ...]
) -> None:
    """Each once, in order, without the number of the replica."""
    assert _get(devices) == uuids


@pytest.mark.parametrize(
    "devices",
    [{}, {"example.com/nic": [GPU]}, {"nvidia.com/gpu": []}, {"nvidia.com/hostdev": ["0"]}],
    ids=["nothing", "a nic", "no id", "hostdev"],
)
def test_a_pod_without_gpus_has_none(devices: Mapping[str, Sequence[str]]) -> None:
    """Other resources are no GPUs, whatever their ids look like."""
    assert _get(devices) == ()


@pytest.mark.parametrize("id_", ["0", "nvidia0", f"{GPU}-3", GPU.upper(), "GPU-", f"x{GPU}"])
def test_a_device_that_nvml_cannot_be_asked_for_is_unseen(id_: str) -> None:
    """The Pod has a GPU, and nobody can say which: that is not the same as none."""
    found = _get({"nvidia.com/gpu": [id_]})

    assert isinstance(found, Unseen)
    assert id_ in found.detail


def test_a_gpu_by_resource_claim_is_unseen() -> None:
    """The claim names a device of the driver's, so the Pod does not count as one without."""
    found = _get({"claim:gpu.nvidia.com": ["gpu-0"]})

    assert isinstance(found, Unseen)
    assert "ResourceClaim" in found.detail


def test_a_claim_of_another_driver_is_no_gpu() -> None:
    """Claims are for anything."""
    assert _get({"claim:nic.example.com": ["eth0"]}) == ()


def test_the_pod_is_found_in_a_list_by_namespace_and_name() -> None:
    """A namesake in another namespace is another Pod."""
    pods = [
        pod_resources("other", "pod", {"nvidia.com/gpu": [OTHER_GPU]}),
        pod_resources("default", "pod", {"nvidia.com/gpu": [GPU]}),
    ]
    answer = encode("ListPodResourcesResponse", pod_resources=pods)

    assert gpus_in_list(answer, "default", "pod") == (GPU,)


def test_a_pod_that_is_not_listed_is_unseen() -> None:
    """Kubelet does not know it yet, or no longer."""
    answer = encode("ListPodResourcesResponse", pod_resources=[])

    assert isinstance(gpus_in_list(answer, "default", "pod"), Unseen)


def test_garbage_is_unseen() -> None:
    """An answer that is no message proves nothing."""
    assert isinstance(gpus_in_get(b"\xff\xff"), Unseen)
    assert isinstance(gpus_in_list(b"\xff\xff", "default", "pod"), Unseen)
