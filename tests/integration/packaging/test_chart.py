"""The Helm chart: the same objects as the manifests, and values that are checked."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from tests.support.control_plane import ControlPlane
from tests.support.session_api import CRD
from tests.support.toolchain import REPOSITORY

Object = dict[str, Any]
Render = Callable[..., list[Object]]

CHART = REPOSITORY / "charts" / "gpusession"


def by_name(objects: list[Object]) -> dict[str, Object]:
    """Index objects, without what belongs to Helm alone."""
    named = {}
    for each in objects:
        metadata = each["metadata"]
        metadata.get("annotations", {}).pop("helm.sh/resource-policy", None)
        if not metadata.get("annotations", True):
            del metadata["annotations"]
        named[f"{each['kind']} {metadata.get('namespace', '')}/{metadata['name']}"] = each
    named.pop("Namespace /gpusession-system", None)  # of the release: helm --create-namespace
    return named


def test_its_crd_is_a_copy() -> None:
    """Helm installs crds/ as it stands, and `make` has no step that could forget it."""
    assert (CHART / "crds" / CRD.name).read_bytes() == CRD.read_bytes()


@pytest.mark.parametrize(
    ("options", "components"),
    [
        (["--set=finalizerAtCreation=never"], []),
        (["--set=finalizerAtCreation=always"], ["finalizer-at-creation"]),
        (
            ["--set=finalizerAtCreation=never", "--set=certificates.certManager.enabled=true"],
            ["cert-manager"],
        ),
        (
            ["--set=finalizerAtCreation=never", "--set=agent.runtimeClassName=nvidia"],
            ["nvidia-runtime"],
        ),
        (
            ["--set=finalizerAtCreation=never", "--set=agent.cgroupV1=true"],
            ["cgroup-v1"],
        ),
    ],
    ids=["defaults", "finalizer", "cert-manager", "runtime class", "cgroup v1"],
)
def test_it_makes_the_same_objects_as_the_manifests(
    charted: Render, kustomized: Render, options: list[str], components: list[str]
) -> None:
    """Same kinds, names and specs, so that one reviewed source has two forms."""
    chart, manifests = by_name(charted(*options)), by_name(kustomized(*components))

    assert chart.keys() == manifests.keys()
    for name, wanted in manifests.items():
        assert chart[name] == wanted, name


def test_the_apiserver_takes_every_object_of_it(session_api: ControlPlane, charted: Render) -> None:
    """Also with everything set that can be."""
    objects = charted(
        "--set=image.digest=sha256:" + "0" * 64,
        "--set=imagePullSecrets[0].name=registry",
        "--set=controller.settings.LOG_LEVEL=DEBUG",
        "--set=controller.nodeSelector.pool=system",
        "--set=agent.settings.NVML_TIMEOUT=1",
        "--set-string=agent.nodeSelector.nvidia\\.com/gpu\\.present=true",
    )

    done = session_api.kubectl(
        *("apply", "--dry-run=server", "--validate=strict", "-f", "-"),
        input=yaml.safe_dump_all(objects),
        check=False,
    )

    assert not done.returncode, done.stderr


def test_other_namespaces_reach_every_place_that_names_them(charted: Render) -> None:
    """Policies, callers, certificates and settings follow the names that were chosen."""
    rendered = yaml.safe_dump_all(
        charted(
            "--namespace=elsewhere",
            "--set=agentNamespace.name=nodes",
            "--set=certificates.certManager.enabled=true",
        )
    )

    rest = rendered.replace("gpusession-agent.nodes.svc", "")
    assert "gpusession-system" not in rest
    assert "gpusession-agents" not in rest
    assert "system:serviceaccount:elsewhere:gpusession-controller" in rest


@pytest.mark.parametrize(
    "option",
    [
        "--set=controller.replicas=0",
        "--set=image.tag=",
        "--set=image.digest=sha256:short",
        "--set=agent.settings.PROC_ROOT=/elsewhere",
        "--set=agent.settings.DEMO_MODE=true",
        "--set=agent.settings.log_level=DEBUG",
        "--set=agentNamespace.name=Not_A_Name",
        "--set=finalizerAtCreation=sometimes",
        "--set=redis.url=redis://secret@host",
        "--set=unknown=1",
    ],
)
def test_bad_values_are_refused(
    helm: Callable[..., subprocess.CompletedProcess[str]], option: str
) -> None:
    """values.schema.json knows every value, and keeps passwords out of the release."""
    done = helm(option)

    assert done.returncode
    assert "schema" in done.stderr
