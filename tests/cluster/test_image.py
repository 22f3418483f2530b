"""The image, built from Debian packages where no registry is: what is in it, and as whom it runs.

Needs root. Its root file system is mounted and entered read-only, as kubelet would run it.
"""

import http.client
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.support import kubeconfig
from tests.support.pki import CertificateAuthority
from tests.support.processes import Process, free_port, wait_until
from tests.support.session_api import BASE
from tests.support.toolchain import REPOSITORY

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting an image needs root"),
    pytest.mark.timeout(300),
]

LARGEST = 215_000_000
"""Bytes of all files; 208 MB were measured. A dependency that adds much should be noticed."""


def buildah(*arguments: str) -> str:
    """Run buildah for its answer."""
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@dataclass(frozen=True)
class Mounted:
    """The image's files, and its configuration as a runtime reads it."""

    root: Path
    user: str
    entrypoint: tuple[str, ...]
    environment: Mapping[str, str]
    labels: Mapping[str, str]

    def run(self, *argv: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program of the image: read-only root, its own user, no new privileges."""
        script = (
            'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && root="$0" user="$1"'
            " && shift && exec setpriv --no-new-privs"
            ' /usr/sbin/chroot --userspec="$user" "$root" "$@"'
        )
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, self.root, user or self.user, *argv],
            capture_output=True,
            text=True,
            check=False,
            env={key: str(value) for key, value in self.environment.items()},
        )


@pytest.fixture(scope="module")
def image(built_image: str) -> Iterator[Mounted]:
    """Give the image as built from this working tree."""
    container = buildah("from", "--pull-never", built_image)
    try:
        config = json.loads(buildah("inspect", container))["OCIv1"]["config"]
        yield Mounted(
            root=Path(buildah("mount", container)),
            user=config["User"],
            entrypoint=tuple(config["Entrypoint"]),
            environment=dict(each.split("=", 1) for each in config["Env"]),
            labels=config["Labels"],
        )
    finally:
        buildah("rm", container)


def test_it_starts_as_nobody_in_particular(image: Mounted) -> None:
    """The default user is 65532, and the entry point tells what it can be."""
    done = image.run(*image.entrypoint, "--help")

    assert image.user == "65532:65532"
    assert done.returncode == 0, done.stderr
    assert "controller" in done.stdout
    assert image.run("id", "-un").stdout.strip() == "gpusession"


@pytest.mark.parametrize(
    ("process", "user", "complaint"),
    [
        ("controller", None, "no way to log in to Kubernetes"),
        ("gateway", None, "no way to log in to Kubernetes"),
        ("agent", "0:0", "node_name: Field required"),
        ("beat", None, "the following arguments are required: --url"),
    ],
)
def test_each_process_gets_as_far_as_its_settings(
    image: Mounted, process: str, user: str | None, complaint: str
) -> None:
    """All their modules are there, also those that only this one needs."""
    done = image.run(*image.entrypoint, process, user=user)

    assert done.returncode == 2
    assert complaint in done.stderr


def test_what_was_kept_of_the_kubernetes_client_logs_in(image: Mounted) -> None:
    """Reading a kubeconfig needs none of the generated models that the image leaves out."""
    named = {"name": "a", "cluster": {"server": "https://api:6443"}, "user": {"token": "t"}}
    kubeconfig = {
        "current-context": "a",
        "clusters": [named],
        "users": [named],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
    }
    program = (
        "import asyncio\n"
        "from kubernetes.aio import client, config\n"
        "made = client.Configuration()\n"
        f"login = config.load_kube_config_from_dict({kubeconfig}, client_configuration=made)\n"
        "asyncio.run(login)\n"
        "print(made.host, made.api_key['BearerToken'])"
    )

    done = image.run("python", "-c", program)

    assert done.stdout.split() == ["https://api:6443", "Bearer", "t"], done.stderr


@dataclass(frozen=True)
class Agent:
    """An agent of the image that runs with its manifest's mounts and capabilities."""

    process: Process
    ledger: Path
    metrics_port: int

    def get(self, path: str) -> tuple[int, str]:
        """Ask the plain port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()


@pytest.fixture
def agent(image: Mounted, tmp_path: Path) -> Iterator[Agent]:
    """Run the agent as its DaemonSet does, on a machine without a GPU and with no apiserver."""
    tls, ledger = tmp_path / "tls", tmp_path / "ledger"
    authority = CertificateAuthority(tls)
    pair = authority.issue("agent")
    login = kubeconfig.by_certificate(
        tls / "kubeconfig", server="https://127.0.0.1:1", ca_file=authority.ca_file, pair=pair
    )
    (tls / "kubeconfig").write_text(login.read_text().replace(str(tls), "/etc/gpusession/tls"))
    mounts = {tls: "/etc/gpusession/tls", ledger: "/var/lib/gpusession", Path("/proc"): "/proc"}
    for source, target in mounts.items():
        source.mkdir(exist_ok=True)
        (image.root / target[1:]).mkdir(parents=True, exist_ok=True)  # as a runtime does
    port, metrics_port = free_port(), free_port()
    settings = {
        "NODE_NAME": "node-a",
        "KUBECONFIG": "/etc/gpusession/tls/kubeconfig",
        "LISTEN_HOST": "127.0.0.1",
        "PORT": str(port),
        "METRICS_PORT": str(metrics_port),
        "TLS_CERT_FILE": f"/etc/gpusession/tls/{pair.cert.name}",
        "TLS_KEY_FILE": f"/etc/gpusession/tls/{pair.key.name}",
    }
    script = "\n".join(
        [
            "set -e",
            'mount --bind "$0" "$0"; mount -o remount,ro,bind "$0"',
            *(f'mount --bind {source} "$0{target}"' for source, target in mounts.items()),
            'exec /usr/sbin/chroot "$0" setpriv --no-new-privs --bounding-set="$1" "$2" agent',
        ]
    )
    environment = dict(image.environment) | {f"GPUSESSION_{k}": v for k, v in settings.items()}
    argv = ["unshare", "--mount", "sh", "-c", script, image.root, capabilities(), "gpusession"]
    process = Process(argv, log=tmp_path / "agent.log", env=environment)
    with process:
        yield Agent(process=process, ledger=ledger, metrics_port=metrics_port)


def capabilities() -> str:
    """Read the agent's capabilities off its manifest, as setpriv names them."""
    manifest = yaml.safe_load((BASE / "40-agent.yaml").read_text(encoding="utf-8"))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    wanted = container["securityContext"]["capabilities"]
    assert wanted["drop"] == ["ALL"]
    return ",".join(["-all", *(f"+{name.lower()}" for name in wanted["add"])])


def test_an_agent_lives_on_what_its_manifest_allows(agent: Agent) -> None:
    """With one capability and a read-only root it keeps its ledger, and says it is blind."""
    wait_until(
        lambda: agent.get("/healthz")[0] == 200,
        timeout=30,
        what="the agent to be alive",
        processes=[agent.process],
        period=0.1,
    )

    status, reasons = agent.get("/readyz")
    proc = Path(f"/proc/{agent.process.pid}/status").read_text(encoding="ascii")

    assert status == 503
    assert "NVML" in reasons
    assert "pid namespace not proven" in reasons
    assert re.search(r"^CapEff:\s+0+20$", proc, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", proc, re.MULTILINE)
    assert (agent.ledger / "ledger.sqlite").is_file()


def test_nothing_in_it_can_be_written(image: Mounted) -> None:
    """The root is read-only, and no process needs another place than its mounts."""
    done = image.run("sh", "-c", "touch /tmp/x /opt/gpusession/x /x", user="0:0")

    assert done.stderr.count("Read-only file system") == 3


def test_modules_come_with_their_bytecode(image: Mounted) -> None:
    """A read-only root cannot keep any, and compiling at each start takes seconds of CPU."""
    program = "import gpusession.controller.main as m; print(m.__cached__)"

    cached = image.run("python", "-c", program).stdout.strip()

    assert (image.root / cached.removeprefix("/")).is_file()


def test_no_tool_of_the_build_is_left(image: Mounted) -> None:
    """No compiler, no installer, no program that changes its user, no test."""
    names = re.compile(r"(cc|gcc|g\+\+|c\+\+|clang|tcc|make|pip3?|uvx?)(-?[\d.]+)?")
    found = [
        path.relative_to(image.root)
        for path in image.root.rglob("*")
        if not path.is_symlink()
        and (
            (path.is_file() and path.parent.name in {"bin", "sbin"} and names.fullmatch(path.name))
            or (path.is_file() and path.stat().st_mode & 0o6000)
            or (path.is_dir() and path.name in {"tests", "ensurepip", "pip"})
        )
    ]

    assert found == []


def test_no_trace_of_the_building_machine_is_left(image: Mounted) -> None:
    """Neither its mirror nor its name server nor the CAs that it trusts on its own."""
    ours = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()

    sources = image.root / "etc" / "apt"
    assert not list(sources.glob("sources.list*"))
    for name in ("resolv.conf", "hosts", "hostname", "machine-id"):
        path = image.root / "etc" / name
        assert not path.exists() or ours not in path.read_text() or not path.read_text()
    bundle = (image.root / "etc/ssl/certs/ca-certificates.crt").read_text()
    listed = (image.root / "etc/ca-certificates.conf").read_text().splitlines()
    shipped = [line for line in listed if line and not line.startswith(("#", "!"))]
    assert bundle.count("BEGIN CERTIFICATE") == len(shipped)


def test_labels_say_what_it_is(image: Mounted) -> None:
    """Name, version, revision and license, as the OCI names them."""
    prefix = "org.opencontainers.image."
    labels = {key.removeprefix(prefix): value for key, value in image.labels.items()}
    version = (REPOSITORY / "operator/gpusession/__init__.py").read_text()

    assert labels["title"] == "gpu-session-operator"
    assert labels["licenses"] == "Apache-2.0"
    assert f'"{labels["version"]}"' in version
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", labels["revision"])


def test_it_stays_small(image: Mounted, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes are printed, so that a review sees what an addition costs."""
    parts = {
        "all of it": image.root,
        "our environment": image.root / "opt" / "gpusession",
        "kubernetes client": next(image.root.glob("opt/gpusession/lib/*/site-packages/kubernetes")),
    }

    sizes = {
        what: sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
        for what, folder in parts.items()
    }

    with capsys.disabled():
        print("\n" + ", ".join(f"{what} {size / 1e6:.0f} MB" for what, size in sizes.items()))
    assert sizes["all of it"] < LARGEST
