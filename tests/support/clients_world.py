"""Words for tests with clients: who may make tokens, who beats, who falls silent.

Clients are processes of their own, `gpusession beat`, and come by one address behind which
all gateways take turns.
"""

import itertools
import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

from tests.support.operator_stack import OperatorStack
from tests.support.processes import Process
from tests.support.session_world import Object, World
from tests.support.toolchain import REPOSITORY

ACCOUNT, AUDIENCE = "client", "gpusession-gateway"

PERIODS = 3
THRESHOLD = float(PERIODS)
"""Seconds of silence that end a Session: beats come every second."""

START_SECONDS = 8
"""For a client to start and connect, on a busy machine: who is never heard lives so long."""

_numbers = itertools.count()


class ClientsWorld(World):
    """A namespace whose account `client` may make and revoke tokens."""

    def __init__(self, stack: OperatorStack, namespace: str) -> None:
        super().__init__(stack, namespace)
        self.clients: list[Process] = []
        self.folder = stack.workdir / "clients" / namespace
        self.folder.mkdir(parents=True)
        self.apply(*token_permission(namespace))
        self.identity = stack.plane.service_account_token(namespace, ACCOUNT, AUDIENCE)

    @staticmethod
    def beats(*, delay: int = START_SECONDS) -> Object:
        """Give the part of a spec that expects a beat every second."""
        beat = {"periodSeconds": 1, "failureThreshold": PERIODS, "initialDelaySeconds": delay}
        return {"heartbeat": beat}

    def client(self, name: str, *options: str) -> Process:
        """Start a client of a Session, which makes its own tokens."""
        return self._beat(name, f"--kubernetes-token-file={self.identity}", *options)

    def client_with_a_token(self, name: str) -> Process:
        """Start a client that has one token, and no way to another."""
        file = self.folder / f"{name}.token"
        file.write_text(self.token(name))
        return self._beat(name, f"--token-file={file}")

    def _beat(self, name: str, *options: str) -> Process:
        argv = [sys.executable, "-m", "gpusession", "beat", f"--url={self.stack.front_url}"]
        argv += [f"--namespace={self.namespace}", f"--session={name}", "--log-level=INFO"]
        argv += options
        log = self.folder / f"{name}-{next(_numbers)}.log"
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY / "operator")}
        process = Process(argv, log=log, env=environment, cwd=REPOSITORY)
        process.start()
        self.clients.append(process)
        return process

    def start_with_client(self, name: str, *options: str, **spec: Any) -> Process:
        """Bring a Session to life and wait until a client of it is connected."""
        self.start(name, "--memory=1Gi", **(self.beats() | spec))
        client = self.client(name, *options)
        self.wait(lambda: self.connections(name), f"the client of {name}")
        return client

    def end_clients(self) -> None:
        """End all clients without a farewell."""
        for client in self.clients:
            client.resume()
            client.kill()

    def uid(self, name: str) -> str:
        """Give the uid of a Session."""
        return str((self.get(name) or {})["metadata"]["uid"])

    def connections(self, name: str) -> int:
        """Count a Session's connections, as its record has them."""
        record = self.record(name)
        return sum(int(value) for field, value in record.items() if field.startswith("c:"))

    def record(self, name: str) -> dict[str, str]:
        """Read what Redis holds of a Session."""
        with self.stack.redis() as client:
            return dict(client.hgetall(f"gs:s:{self.uid(name)}"))

    def call(
        self, method: str, path: str, token: str, body: Object | None = None
    ) -> tuple[int, Any]:
        """Send one request to a gateway."""
        request = urllib.request.Request(  # noqa: S310 - our own loopback
            self.stack.front_url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def token(self, name: str) -> str:
        """Make a token for a Session, as its account may."""
        asked = {"namespace": self.namespace, "name": name}
        status, answer = self.call("POST", "/v1/token", self.identity.read_text(), asked)
        assert status == 200, answer
        return str(answer["token"])

    def ended_as(self, name: str) -> str:
        """Wait for the end of a Session and return its reason."""
        return str(self.wait_phase(name, "Destroyed")["reason"])


def token_permission(namespace: str) -> list[Object]:
    """Give an account `client` that may make and revoke tokens, and what allows it."""
    metadata = {"name": ACCOUNT, "namespace": namespace}
    group = "rbac.authorization.k8s.io"
    rule = {
        "apiGroups": ["gpusession.dev"],
        "resources": ["sessions/token"],
        "verbs": ["create", "delete"],
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "subjects": [{"kind": "ServiceAccount", **metadata}],
            "roleRef": {"apiGroup": group, "kind": "Role", "name": ACCOUNT},
        },
    ]
