"""A Helm release in a control plane of its own: installed, and taken away again."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.control_plane import ControlPlane
from tests.support.helm_tool import helm_tool
from tests.support.session_api import BASE, CRD
from tests.support.toolchain import REPOSITORY

RELEASE = ("gpusession", "--namespace=gpusession-system")
CHART = REPOSITORY / "charts" / "gpusession"
KEPT = ("--set=agentNamespace.create=false",)
"""The namespaces are there before the release."""


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """Give a control plane with the two namespaces and nothing else of ours."""
    helm_tool()
    with ControlPlane() as plane:
        plane.kubectl("apply", "-f", BASE / "00-namespaces.yaml")
        yield plane


def helm(plane: ControlPlane, *arguments: str | os.PathLike[str]) -> str:
    """Run Helm as admin, apart from the user's own settings."""
    own = {"HELM_CACHE_HOME": str(plane.workdir), "HELM_CONFIG_HOME": str(plane.workdir)}
    done = subprocess.run(
        [helm_tool(), *arguments, f"--kubeconfig={plane.admin_kubeconfig}"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | own,
    )
    assert not done.returncode, done.stderr
    return done.stdout


def ours(plane: ControlPlane, kinds: str) -> set[str]:
    """Name the objects of some kinds that are ours."""
    found = plane.kubectl("get", kinds, "-A", "-o=name").stdout.split()
    return {name.rpartition("/")[2] for name in found if "gpusession" in name}


@pytest.mark.timeout(90)
def test_an_upgrade_keeps_what_stands_in_the_file_of_values(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """The page's own file, at the install and with another tag; --set alone forgets it."""
    page = (REPOSITORY / "docs" / "install.md").read_text(encoding="utf-8")
    (values,) = re.findall(r"^# my-values\.yaml\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    file = tmp_path / "my-values.yaml"

    def agents() -> tuple[str, str, str]:
        columns = (".nodeSelector", ".runtimeClassName", ".containers[0].image")
        path = " ".join(f"{{.spec.template.spec{column}}}" for column in columns)
        question = ("get", "ds", "gpusession-agent", "--namespace=gpusession-agents")
        selector, runtime, image = plane.kubectl(*question, f"-o=jsonpath={path}").stdout.split(" ")
        return selector, runtime, image

    chosen = ('{"nvidia.com/gpu.present":"true"}', "nvidia")
    file.write_text(values)
    helm(plane, "install", *RELEASE, CHART, f"--values={file}")
    assert agents() == (*chosen, "REGISTRY/gpusession:0.1.0")

    file.write_text(values.replace("0.1.0", "0.2.0"))
    helm(plane, "upgrade", *RELEASE, CHART, f"--values={file}")
    assert agents() == (*chosen, "REGISTRY/gpusession:0.2.0")

    helm(plane, "upgrade", *RELEASE, CHART, *KEPT, "--set=image.tag=0.3.0")
    assert agents() == ("", "", "localhost/gpusession:0.3.0")
    helm(plane, "uninstall", *RELEASE)


@pytest.mark.timeout(60)
def test_a_release_leaves_what_sessions_need_to_outlive_it(plane: ControlPlane) -> None:
    """CRD and namespaces stay after uninstall; workloads and policies go."""
    helm(plane, "install", *RELEASE, CHART, *KEPT)
    helm(plane, "upgrade", *RELEASE, CHART, *KEPT)
    workloads = ours(plane, "deployments,daemonsets")
    policies = ours(plane, "validatingadmissionpolicies,mutatingadmissionpolicies")
    assert workloads == {"gpusession-controller", "gpusession-gateway", "gpusession-agent"}
    assert len(policies) == 6

    helm(plane, "uninstall", *RELEASE)

    assert ours(plane, "validatingadmissionpolicies,mutatingadmissionpolicies") == set()
    assert ours(plane, "namespaces") == {"gpusession-system", "gpusession-agents"}
    plane.kubectl("get", "-f", CRD)
