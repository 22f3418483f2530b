"""The Helm chart: the same objects as the manifests, and values that are checked."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.control_plane import ControlPlane
from tests.support.session_api import CRD
from tests.support.toolchain import REPOSITORY

from gpusession.settings import ControllerSettings, GatewaySettings

Object = dict[str, Any]
Render = Callable[..., list[Object]]

CHART = REPOSITORY / "charts" / "gpusession"
REDIS_POLICY = "NetworkPolicy gpusession-system/gpusession-redis"


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
        (
            [
                "--set=finalizerAtCreation=never",
                "--set=gateway.tls.existingSecret=gpusession-gateway-tls",
            ],
            ["gateway-tls"],
        ),
        (["--set=finalizerAtCreation=never", "--set=redis.enabled=true"], ["redis"]),
    ],
    ids=[
        *("defaults", "finalizer", "cert-manager", "runtime class", "cgroup v1", "gateway tls"),
        "redis",
    ],
)
def test_it_makes_the_same_objects_as_the_manifests(
    charted: Render, kustomized: Render, options: list[str], components: list[str]
) -> None:
    """Same kinds, names and specs, so that one reviewed source has two forms."""
    chart, manifests = by_name(charted(*options)), by_name(kustomized(*components))

    assert chart.keys() == manifests.keys()
    for name, wanted in manifests.items():
        assert chart[name] == wanted, name


def test_another_folder_of_kubelet_has_a_value_and_a_patch(
    charted: Render, kustomized: Render
) -> None:
    """The patch that docs/install.md shows does what the chart's value does, and it alone."""
    page = (REPOSITORY / "docs" / "install.md").read_text(encoding="utf-8")
    patches = re.findall(r"^```yaml\n(patches:\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    (shown,) = [patch for patch in patches if "pod-resources" in patch]
    agent = "DaemonSet gpusession-agents/gpusession-agent"

    chart = by_name(charted("--set=agent.kubeletDir=/var/lib/k0s/kubelet"))[agent]
    patched = by_name(kustomized(patches=yaml.safe_load(shown)["patches"]))[agent]

    pods = [each["spec"]["template"]["spec"] for each in (chart, patched)]
    for pod in pods:
        pod["volumes"].sort(key=lambda volume: volume["name"])  # a patch moves its own to the front
    assert chart == patched
    assert "/var/lib/k0s/kubelet/pod-resources" in str(pods[0]["volumes"])


def test_the_apiserver_takes_every_object_of_it(session_api: ControlPlane, charted: Render) -> None:
    """Also with everything set that can be."""
    objects = charted(
        "--set=image.digest=sha256:" + "0" * 64,
        "--set=imagePullSecrets[0].name=registry.example.com",
        "--set=controller.settings.LOG_LEVEL=DEBUG",
        "--set=controller.nodeSelector.pool=system",
        "--set=agent.settings.NVML_TIMEOUT=1",
        "--set=agent.kubeletDir=/var/snap/microk8s/common/var/lib/kubelet",
        "--set-string=agent.nodeSelector.nvidia\\.com/gpu\\.present=true",
        "--set=redis.enabled=true",
        "--set=redis.storageClassName=fast",
        "--set=redis.nodeSelector.pool=system",
        "--set=gateway.service.type=LoadBalancer",
        "--set=gateway.tls.existingSecret=mine",
        "--set=gateway.allowFrom[0].ipBlock.cidr=10.0.0.0/8",
        "--set=gateway.ingress.enabled=true",
        "--set=gateway.ingress.className=nginx",
        "--set=gateway.ingress.tlsSecret=host",
        "--set=gateway.allowedOrigins={https://notebooks.example.com}",
        "--set=gateway.settings.LOG_LEVEL=DEBUG",
    )

    done = session_api.kubectl(
        *("apply", "--dry-run=server", "--validate=strict", "-f", "-"),
        input=yaml.safe_dump_all(objects),
        check=False,
    )

    assert not done.returncode, done.stderr


def test_without_a_gateway_nothing_of_it_is_there(charted: Render) -> None:
    """No account, no right, no way in."""
    rendered = charted(
        *("--set=gateway.enabled=false", "--set=gateway.ingress.enabled=true"),
        "--set=redis.enabled=true",
    )

    assert not [name for name in by_name(rendered) if "gateway" in name or "client" in name]
    assert "gpusession-gateway" not in yaml.safe_dump(by_name(rendered)[REDIS_POLICY])


@pytest.mark.parametrize("given", ["CONNECTIONS_MOST: 1000000", "NAMESPACE_RATE: 0.5"])
def test_numbers_reach_a_process_as_they_were_written(
    charted: Render, tmp_path: Path, given: str
) -> None:
    """Helm reads all numbers as floats, and would write a million as 1e+06."""
    values = tmp_path / "values.yaml"
    values.write_text(f"gateway: {{settings: {{{given}}}}}")
    gateway = by_name(charted(f"--values={values}"))[
        "Deployment gpusession-system/gpusession-gateway"
    ]

    env = gateway["spec"]["template"]["spec"]["containers"][0]["env"]
    name, _, value = given.partition(": ")
    assert {"name": f"GPUSESSION_{name}", "value": value} in env


@pytest.mark.parametrize(
    "page",
    [CHART / "values.yaml", REPOSITORY / "docs" / "liveness.md"],
    ids=["values.yaml", "liveness.md"],
)
def test_settings_that_people_read_of_exist(page: Path) -> None:
    """Whoever copies the name of a brake's setting gets that setting, not a dead process."""
    text = page.read_text(encoding="utf-8")
    shown = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text)) - {"GPUSESSION_"}
    fields = ControllerSettings.model_fields.keys() | GatewaySettings.model_fields.keys()

    assert {"BRAKE_MINIMUM", "BRAKE_FULL_SHARE", "BRAKE_HOLD"} <= shown
    assert {name.lower() for name in shown} <= fields


def test_other_namespaces_reach_every_place_that_names_them(charted: Render) -> None:
    """Policies, callers, certificates and settings follow the names that were chosen."""
    rendered = yaml.safe_dump_all(
        charted(
            "--namespace=elsewhere",
            "--set=agentNamespace.name=nodes",
            "--set=certificates.certManager.enabled=true",
            "--set=redis.enabled=true",
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
        "--set=agent.kubeletDir=/var/lib/../../etc",
        "--set=agent.kubeletDir=/var/lib/kubelet/",
        "--set=agent.kubeletDir=",
        "--set=agent.settings.DEMO_MODE=true",
        "--set=agent.settings.PORT=9443",
        "--set=agent.settings.METRICS_PORT=9091",
        "--set=controller.settings.METRICS_PORT=9091",
        "--set=controller.settings.IDENTITY=same",
        "--set=agent.settings.log_level=DEBUG",
        "--set=agentNamespace.name=Not_A_Name",
        "--set=finalizerAtCreation=sometimes",
        "--set=redis.url=redis://secret@host",
        "--set=redis.storage=much",
        "--set=gateway.replicas=0",
        "--set=gateway.terminationGracePeriodSeconds=5",
        "--set=gateway.allowedOrigins={*}",
        "--set=gateway.service.type=ExternalName",
        "--set=gateway.settings.IDENTITY=same",
        "--set=gateway.settings.METRICS_PORT=9091",
        "--set=imagePullSecrets[0].name=Not_A_Name",
        "--set=gateway.ingress.host=Not A Host",
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
