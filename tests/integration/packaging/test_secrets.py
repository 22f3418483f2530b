"""manifests/secrets.sh: what it makes is what controller and agent can use."""

import base64
import json
import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.control_plane import ControlPlane
from tests.support.session_api import MANIFESTS
from tests.support.toolchain import REPOSITORY

from gpusession.settings import ControllerSettings

SCRIPT = MANIFESTS / "secrets.sh"


def printed(*options: str) -> str:
    """Run the script."""
    return subprocess.run([SCRIPT, *options], capture_output=True, text=True, check=True).stdout


def secrets(*options: str) -> dict[tuple[str, str], dict[str, bytes]]:
    """Run the script and give the content of its Secrets by namespace and name."""
    found: list[dict[str, Any]] = list(yaml.safe_load_all(printed(*options)))
    return {
        (each["metadata"]["namespace"], each["metadata"]["name"]): {
            key: base64.b64decode(value) for key, value in each["data"].items()
        }
        for each in found
    }


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Run a TLS handshake in memory; raises where the client does not trust the server."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Give the agent's and the controller's TLS, from the script's Secrets."""
    made = secrets()
    pair = made["gpusession-agents", "gpusession-agent-tls"]
    (tmp_path / "tls.crt").write_bytes(pair["tls.crt"])
    (tmp_path / "tls.key").write_bytes(pair["tls.key"])
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    authority = made["gpusession-system", "gpusession-agent-ca"]["ca.crt"].decode()
    client = ssl.create_default_context(cadata=authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does by itself
    return server, client


def test_the_controller_trusts_an_agent(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """The certificate carries the name that the controller insists on, and is well-formed."""
    server, client = contexts

    shake_hands(server, client, ControllerSettings().agent_server_name)


def test_the_certificate_is_good_for_no_other_name(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """It is an agent's and nobody else's."""
    server, client = contexts

    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server, client, "kubernetes.default.svc")


def test_only_the_state_url_goes_to_the_agents() -> None:
    """The records' password stays with the controller."""
    made = secrets("--redis", "--state-redis-url", "redis://state")

    own = made["gpusession-system", "gpusession-redis"]
    password = own["password"].decode()
    assert own["redis-url"].decode() == (
        f"redis://:{password}@gpusession-redis.gpusession-system.svc:6379/0"
    )
    assert made["gpusession-agents", "gpusession-redis"] == {"state-redis-url": b"redis://state"}


def test_the_apiserver_takes_them(session_api: ControlPlane) -> None:
    """What is written can be piped to kubectl as it is."""
    session_api.kubectl("apply", "--dry-run=server", "-f", "-", input=printed("--redis"))


def test_a_second_run_renews_certificates_and_leaves_the_password(
    session_api: ControlPlane,
) -> None:
    """Whoever repeats all options, --redis too, is refused where it would break what runs."""
    kubectl = session_api.kubectl
    names = (
        ("gpusession-agents", "gpusession-agent-tls"),
        ("gpusession-system", "gpusession-redis"),
    )

    def there() -> list[dict[str, str]]:
        questions = (("get", "secret", name, "-n", space, "-o=json") for space, name in names)
        return [json.loads(kubectl(*question).stdout)["data"] for question in questions]

    try:
        kubectl("apply", "-f", "-", input=printed("--redis"))
        pair, password = there()

        again = kubectl("apply", "-f", "-", input=printed("--redis"), check=False)

        assert "field is immutable" in again.stderr
        assert there()[0] != pair
        assert there()[1] == password
    finally:
        for made in yaml.safe_load_all(printed("--redis")):
            where = (f"--namespace={made['metadata']['namespace']}", "--ignore-not-found")
            kubectl("delete", "secret", made["metadata"]["name"], *where)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), {"gpusession-agent-tls", "gpusession-agent-ca"}),
        (("--no-certificates", "--redis-url=x"), None),
        (("--no-certificates", "--redis-url", "redis://host"), {"gpusession-redis"}),
        (("--redis", "--redis-url", "redis://host"), None),
        (("--state-redis-url", "redis://host"), None),
    ],
    ids=["renewal", "unknown option", "with cert-manager", "two servers", "half a Secret"],
)
def test_it_prints_what_was_asked_for_alone(
    options: tuple[str, ...], names: set[str] | None
) -> None:
    """What is applied replaces what is there, so nothing is printed beside."""
    done = subprocess.run([SCRIPT, *options], capture_output=True, text=True, check=False)

    assert done.returncode == (0 if names is not None else 2)
    assert {each["metadata"]["name"] for each in yaml.safe_load_all(done.stdout)} == (
        names or set()
    )


def test_redis_is_looked_for_where_it_is_installed() -> None:
    """Options come in any order."""
    made = secrets("--redis", "--system-namespace", "elsewhere")

    assert b"@gpusession-redis.elsewhere.svc:" in made["elsewhere", "gpusession-redis"]["redis-url"]


def test_make_prints_the_same() -> None:
    """`make secrets` hands its options on."""
    done = subprocess.run(
        ["make", "-s", "secrets", "OPTIONS=--no-certificates --redis-url redis://host"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == printed("--no-certificates", "--redis-url", "redis://host")


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    """No key stays on the disk, the authority's least of all."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    subprocess.run([SCRIPT], capture_output=True, check=True, env=environment)

    assert not list(tmp_path.iterdir())
