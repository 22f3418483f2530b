"""The manifests, taken by a real kube-apiserver with its own admission."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.control_plane import ControlPlane
from tests.support.processes import wait_until
from tests.support.session_api import (
    BASE,
    CONTROLLER,
    MANIFESTS,
    create,
    create_namespace,
    remove_namespace,
    session,
)
from tests.support.toolchain import REPOSITORY

from gpusession.gateway.drain import SETTLE
from gpusession.settings import (
    AgentSettings,
    ControllerSettings,
    GatewaySettings,
    ProcessSettings,
)

Object = dict[str, Any]
Render = Callable[..., list[Object]]

COMPONENTS = (
    *("gpu-nodes", "nvidia-runtime", "cgroup-v1", "redis", "finalizer-at-creation"),
    "gateway-tls",
)
"""Those that need nothing beyond Kubernetes itself."""

SYSTEM, AGENTS = "gpusession-system", "gpusession-agents"


def one(objects: list[Object], kind: str, name: str) -> Object:
    """Find an object."""
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def named(an_object: Object) -> tuple[str, str, str]:
    """Say which one it is."""
    metadata = an_object["metadata"]
    return an_object["kind"], metadata.get("namespace", ""), metadata["name"]


def workloads(objects: list[Object]) -> list[Object]:
    """Find everything that makes Pods."""
    return [o for o in objects if "template" in o.get("spec", {})]


def pod_of(workload: Object, namespace: str) -> Object:
    """Give the Pod that a workload would make, in a namespace."""
    template = workload["spec"]["template"]
    metadata = template["metadata"] | {"name": "trial", "namespace": namespace}
    claims = [
        {"name": claim["metadata"]["name"], "emptyDir": {}}
        for claim in workload["spec"].get("volumeClaimTemplates", [])
    ]
    spec = template["spec"] | {"volumes": template["spec"].get("volumes", []) + claims}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("components", [(), COMPONENTS], ids=["base", "with components"])
def test_the_apiserver_takes_every_object(
    session_api: ControlPlane, kustomized: Render, components: tuple[str, ...]
) -> None:
    """Nothing is refused, unknown or only warned about."""
    objects = yaml.safe_dump_all(kustomized(*components))

    done = session_api.kubectl(
        *("apply", "--dry-run=server", "--validate=strict", "-f", "-"), input=objects, check=False
    )

    assert not done.returncode, done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    "overlay", sorted((MANIFESTS / "overlays").iterdir()), ids=lambda o: o.name
)
def test_an_overlay_has_everything_of_the_base(
    session_api: ControlPlane, kustomized: Render, overlay: Path
) -> None:
    """And adds its choices: it is never a copy that lags behind."""
    rendered = list(yaml.safe_load_all(session_api.kubectl("kustomize", overlay).stdout))

    assert set(map(named, kustomized())) <= set(map(named, rendered))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Deployment", "gpusession-controller"),
        ("Deployment", "gpusession-gateway"),
        ("StatefulSet", "gpusession-redis"),
        ("DaemonSet", "gpusession-agent"),
    ],
)
def test_pod_security_admits_each_pod_where_it_belongs(
    session_api: ControlPlane, kustomized: Render, kind: str, name: str
) -> None:
    """What talks to people keeps to `restricted`; only the agents' namespace is privileged."""
    workload = one(kustomized("redis", "gateway-tls"), kind, name)
    pod = pod_of(workload, workload["metadata"]["namespace"])

    done = create(session_api, pod, "--dry-run=server", check=False)

    assert not done.returncode, done.stderr


def test_an_agent_is_refused_in_the_restricted_namespace(
    session_api: ControlPlane, kustomized: Render
) -> None:
    """The control of the test above: Pod Security does look."""
    agent = pod_of(one(kustomized(), "DaemonSet", "gpusession-agent"), SYSTEM)
    agent["spec"] |= {"serviceAccountName": "gpusession-controller"}

    done = create(session_api, agent, "--dry-run=server", check=False)

    assert "violates PodSecurity" in done.stderr
    assert "hostPID=true" in done.stderr


def test_every_container_is_held_to_the_least(kustomized: Render) -> None:
    """No escalation, a read-only root, no capability; the agent alone may signal others."""
    containers = {
        each["name"]: each
        for workload in workloads(kustomized("redis"))
        for each in workload["spec"]["template"]["spec"]["containers"]
    }

    added = {}
    for name, container in containers.items():
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["limits"]["memory"]
        added[name] = security["capabilities"].get("add", [])
    assert added == {"controller": [], "gateway": [], "agent": ["KILL"], "valkey": []}


def test_app_armor_lets_the_agent_alone_signal_whom_it_must(kustomized: Render) -> None:
    """Its default profile knows only peers of the same profile; all others keep to it."""
    profiles = {
        workload["metadata"]["name"]: workload["spec"]["template"]["spec"]["securityContext"].get(
            "appArmorProfile"
        )
        for workload in workloads(kustomized("redis"))
    }

    assert profiles.pop("gpusession-agent") == {"type": "Unconfined"}
    assert set(profiles.values()) == {None}


def test_pods_set_only_settings_that_exist(kustomized: Render) -> None:
    """A name that no setting has would end the process, and so would links of Services."""
    known = {
        "controller": ControllerSettings,
        "agent": AgentSettings,
        "gateway": GatewaySettings,
    }
    for workload in workloads(kustomized("gateway-tls")):
        pod = workload["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        names = {each["name"] for each in container["env"]}
        fields = {f"GPUSESSION_{field.upper()}" for field in known[container["name"]].model_fields}

        assert pod["enableServiceLinks"] is False
        assert {name for name in names if name.startswith("GPUSESSION_")} <= fields


def test_mounts_and_ports_are_where_the_settings_look(kustomized: Render) -> None:
    """Files, ports and names are the defaults of settings.py, so nothing has to be set twice."""
    objects = kustomized()
    controller = one(objects, "Deployment", "gpusession-controller")["spec"]["template"]["spec"]
    agent = one(objects, "DaemonSet", "gpusession-agent")["spec"]["template"]["spec"]
    of_controller, of_agent = ControllerSettings(), AgentSettings(node_name="any")

    token = controller["volumes"][1]["projected"]["sources"][0]["serviceAccountToken"]
    mounts = {each["mountPath"] for each in controller["containers"][0]["volumeMounts"]}
    assert {
        str(of_controller.agent_ca_file.parent),
        str(of_controller.agent_token_file.parent),
    } == mounts
    assert token["path"] == of_controller.agent_token_file.name
    first, metrics = agent["containers"][0]["ports"]
    assert (first["containerPort"], metrics["containerPort"]) == (
        of_agent.port,
        of_agent.metrics_port,
    )
    assert {each["mountPath"] for each in agent["containers"][0]["volumeMounts"]} == {
        str(of_agent.tls_cert_file.parent),
        str(of_agent.ledger_file.parent),
        str(of_agent.pod_resources_socket.parent),
        str(of_agent.cgroup_root),
    }
    label, _, value = of_controller.agent_selector.partition("=")
    labels = one(objects, "DaemonSet", "gpusession-agent")["spec"]["template"]["metadata"]["labels"]
    assert labels[label] == value


def test_clients_reach_the_gateway_by_its_service(kustomized: Render) -> None:
    """Port and labels lead to where the process listens; the metrics are not served to clients."""
    objects = kustomized()
    pod = one(objects, "Deployment", "gpusession-gateway")["spec"]["template"]
    service = one(objects, "Service", "gpusession-gateway")["spec"]
    clients, metrics = pod["spec"]["containers"][0]["ports"]
    defaults = GatewaySettings()

    assert [port["targetPort"] for port in service["ports"]] == [clients["name"]]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert (clients["containerPort"], metrics["containerPort"]) == (
        defaults.port,
        defaults.metrics_port,
    )


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("Deployment", "gpusession-controller", ControllerSettings()),
        ("Deployment", "gpusession-gateway", GatewaySettings()),
        ("DaemonSet", "gpusession-agent", AgentSettings(node_name="any")),
    ],
    ids=["controller", "gateway", "agent"],
)
def test_kubelet_asks_where_the_process_answers(
    kustomized: Render, kind: str, name: str, settings: ProcessSettings
) -> None:
    """Alive by /healthz and ready by /readyz, on the metrics port; else none would ever start."""
    (container,) = one(kustomized(), kind, name)["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    asked = {
        probe.removesuffix("Probe"): (said["httpGet"]["path"], ports[said["httpGet"]["port"]])
        for probe, said in container.items()
        if probe.endswith("Probe")
    }

    plain = settings.metrics_port
    assert asked == {
        "startup": ("/healthz", plain),
        "liveness": ("/healthz", plain),
        "readiness": ("/readyz", plain),
    }


def test_kubelet_asks_redis_by_its_port(kustomized: Render) -> None:
    """A connection to where clients connect too; the password is not for probes."""
    redis = one(kustomized("redis"), "StatefulSet", "gpusession-redis")
    (container,) = redis["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]

    assert container["readinessProbe"]["tcpSocket"]["port"] == port["name"]
    assert container["livenessProbe"]["tcpSocket"]["port"] == port["name"]
    assert ControllerSettings().redis_url.get_secret_value().endswith(f":{port['containerPort']}/0")


def test_a_gateway_has_time_to_send_its_clients_away(kustomized: Render) -> None:
    """Killed in the middle of it, its clients would all come back at once."""
    pod = one(kustomized(), "Deployment", "gpusession-gateway")["spec"]["template"]["spec"]
    defaults = GatewaySettings()

    needed = defaults.drain_spread + SETTLE + defaults.read_timeout + 2 * defaults.redis_timeout
    assert pod["terminationGracePeriodSeconds"] > needed.total_seconds()


def test_readme_names_the_service_that_is_shipped(kustomized: Render) -> None:
    """Scheme and name of the address are those of the base, so that a copy of it works."""
    (address,) = re.findall(r'GATEWAY = "(.*)"', (REPOSITORY / "README.md").read_text("utf-8"))
    service = one(kustomized(), "Service", "gpusession-gateway")

    port, metadata = service["spec"]["ports"][0], service["metadata"]
    assert address == f"{port['name']}://{metadata['name']}.{metadata['namespace']}.svc"
    assert port["port"] == {"http": 80, "https": 443}[port["name"]]


def test_readme_puts_agents_on_gpu_nodes_alone(session_api: ControlPlane, tmp_path: Path) -> None:
    """Its lines, typed beside a copy of the manifests; elsewhere an agent never gets ready."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^mkdir -p my-cluster .*?^END$", text, re.MULTILINE | re.DOTALL)
    for name in ("manifests", "crds"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    subprocess.run(["bash", "-ec", lines], check=True, cwd=tmp_path)

    rendered = session_api.kubectl("kustomize", tmp_path / "my-cluster").stdout

    agent = one(list(yaml.safe_load_all(rendered)), "DaemonSet", "gpusession-agent")
    affinity = agent["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    labels = [each["key"] for term in terms for each in term["matchExpressions"]]
    assert "nvidia.com/gpu.present" in labels


def test_the_patch_for_driver_upgrades_fits(session_api: ControlPlane, tmp_path: Path) -> None:
    """docs/install.md: agents by the label with which NVIDIA's operator sends clients away."""
    text = (REPOSITORY / "docs" / "install.md").read_text(encoding="utf-8")
    shown = re.findall(r"```yaml\n(patches:\n.*?)```", text, re.DOTALL)
    (patches,) = [patch for patch in shown if "gpu.deploy.client" in patch]
    for name in ("manifests", "crds"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    overlay = tmp_path / "my-cluster"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(f"resources: [../manifests]\n{patches}")

    rendered = session_api.kubectl("kustomize", overlay).stdout

    agent = one(list(yaml.safe_load_all(rendered)), "DaemonSet", "gpusession-agent")
    assert agent["spec"]["template"]["spec"]["nodeSelector"] == {
        "nvidia.com/gpu.deploy.client": "true"
    }


def test_the_apiserver_adds_the_finalizer_at_creation(
    session_api: ControlPlane, kustomized: Render
) -> None:
    """Component finalizer-at-creation: a new Session has it at once, beside those of others."""
    policies = [o for o in kustomized("finalizer-at-creation") if o["kind"].startswith("Mutating")]
    session_api.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(policies))
    create_namespace(session_api, "finalizers")
    wanted = session("new", "finalizers")
    wanted["metadata"]["finalizers"] = ["example.com/other"]
    try:
        for _ in range(100):  # a policy is in force some time after it was applied
            done = create(session_api, wanted, "--dry-run=server", "-o=yaml")
            found = yaml.safe_load(done.stdout)["metadata"]["finalizers"]
            if len(found) > 1:
                break

        assert set(found) == {"example.com/other", "gpusession.dev/release"}
    finally:
        session_api.kubectl("delete", "-f", "-", input=yaml.safe_dump_all(policies))
        remove_namespace(session_api, "finalizers")


@pytest.mark.parametrize(
    ("verb", "lease", "namespace", "may"),
    [
        ("create", "leases", SYSTEM, True),
        ("update", "leases/gpusession-controller", SYSTEM, True),
        ("update", "leases/another", SYSTEM, False),
        ("get", "leases/gpusession-controller", AGENTS, False),
    ],
)
def test_the_controller_may_hold_one_lease(
    session_api: ControlPlane, verb: str, lease: str, *, namespace: str, may: bool
) -> None:
    """The Role names one Lease, in one namespace."""
    session_api.kubectl("apply", "-f", BASE / "11-leader-election.yaml")
    question = ("auth", "can-i", verb, lease, f"--namespace={namespace}", f"--as={CONTROLLER}")

    def answer() -> str:
        return session_api.kubectl(*question, check=False).stdout.split()[0]

    wait_until(
        lambda: answer() == ("yes" if may else "no"),
        timeout=10,
        what=f"{verb} {lease} in {namespace} to be {may}",
        period=0.1,
    )
