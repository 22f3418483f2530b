"""A real Kubernetes control plane on loopback ports, without root and without containers.

etcd, kube-apiserver and kube-controller-manager run; no scheduler and no kubelet does, so
tests and demo place Pods and report their status themselves. Several run side by side.
tests/cluster gives it another Site, with a scheduler and real nodes.
"""

import http.client
import json
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support import audit_log, kubeconfig
from tests.support.control_plane_programs import Programs, Site
from tests.support.kubectl import Kubectl
from tests.support.network import inside
from tests.support.pki import Certificate
from tests.support.processes import Process, ProcessFailedError, free_port, wait_until
from tests.support.progress import progress

START_SECONDS = 120.0
"""Start-up takes ten seconds on two busy cores."""

ANSWER_SECONDS = 30.0
"""For one GET: an apiserver answers in milliseconds, where it gets any of a full machine."""

PORT_ATTEMPTS = 5
"""A free port can be taken between the look and the bind; five times in a row is no chance."""

Command = list[str | os.PathLike[str]]


class ControlPlane:
    """A cluster's brain that lives as long as its with block.

    Without a workdir a temporary one is made and removed at the end.
    """

    audit_log: Path
    admin_kubeconfig: Path
    ca_file: Path
    server: str

    def __init__(
        self,
        workdir: Path | None = None,
        *,
        node_grace_seconds: int = 16,
        site: Site | None = None,
    ) -> None:
        self.site = site or Site()
        self._owns_workdir = workdir is None
        self.workdir = (workdir or Path(tempfile.mkdtemp(prefix="gpusession-"))).resolve()
        self.workdir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.processes: dict[str, Process] = {}
        self._node_grace_seconds = node_grace_seconds

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.stop)
            self.start()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the programs; return when default ServiceAccount and root CA are there."""
        self._programs = Programs.prepare(self.workdir, self.site)
        self.audit_log = self._programs.audit_log
        self.ca_file = self._programs.authority.ca_file
        self._tls = ssl.create_default_context(cafile=self.ca_file)
        self._tls.load_cert_chain(*self._programs.admin)
        with progress("starting etcd, kube-apiserver and kube-controller-manager"):
            self._start_programs()

    def _start_programs(self) -> None:
        programs = self._programs
        etcd_port, _ = self._start("etcd", programs.etcd, ports=2, ready="/readyz")
        port, *_ = self._start(
            "kube-apiserver", lambda port: programs.apiserver(port, etcd_port), ready="/readyz"
        )
        self.server = f"https://{self.site.host}:{port}"
        self.admin_kubeconfig = kubeconfig.by_certificate(
            self.workdir / "admin.kubeconfig",
            server=self.server,
            ca_file=self.ca_file,
            pair=programs.admin,
        )
        grace = self._node_grace_seconds
        self._start(
            "kube-controller-manager",
            lambda own: programs.controller_manager(own, self.server, grace),
        )
        if self.site.real_nodes:
            self._start("kube-scheduler", lambda own: programs.scheduler(own, self.server))
        wait_until(
            lambda: (
                self._status(port, "/api/v1/namespaces/default/serviceaccounts/default") == 200
                and self._status(port, "/api/v1/namespaces/default/configmaps/kube-root-ca.crt")
                == 200
            ),
            timeout=START_SECONDS,
            what="the default ServiceAccount",
            processes=self.processes.values(),
            period=0.1,
        )

    def _start(
        self, name: str, command: Callable[..., Command], *, ports: int = 1, ready: str = ""
    ) -> list[int]:
        """Start one program on free ports and give them; again if another took one."""
        for attempt in range(PORT_ATTEMPTS):
            chosen = [free_port() for _ in range(ports)]
            process = Process(
                [*self.site.prefix, *command(*chosen)],
                log=self.workdir / f"{name}.{attempt}.log",
                env=os.environ | {"GOGC": "400"},  # 100 MB more for a fifth less work at the start
                outlives=self.site.outlives,
            )
            process.name = name
            self.processes[name] = process
            process.start()
            try:
                self._wait_ready(process, chosen[0], ready)
            except ProcessFailedError:
                process.stop()
                if not process.log_matches("address already in use"):
                    raise
            else:
                return chosen
        raise ProcessFailedError(f"{name} found no free port in {PORT_ATTEMPTS} attempts")

    def _wait_ready(self, process: Process, port: int, path: str) -> None:
        wait_until(
            lambda: not path or self._status(port, path) == 200,
            timeout=START_SECONDS,
            what=f"{process.name} to be ready",
            processes=[process],
            period=0.05,
        )

    def _status(self, port: int, path: str) -> int:
        return self._get(port, path)[0]

    def _get(self, port: int, path: str) -> tuple[int, bytes]:
        if self.site.network is not None:
            return inside(self.site.network, lambda: self._get_here(port, path))
        return self._get_here(port, path)

    def _get_here(self, port: int, path: str) -> tuple[int, bytes]:
        to = (self.site.host, port)
        connection = http.client.HTTPSConnection(*to, context=self._tls, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def stop(self) -> None:
        """End everything at once: nobody reads this etcd again."""
        for process in reversed(self.processes.values()):
            process.kill()
        self.processes.clear()
        if self._owns_workdir:
            shutil.rmtree(self.workdir, ignore_errors=True)

    def read(self, path: str) -> dict[str, Any] | None:
        """Read an object as admin, by its path; None where there is none.

        For what is polled: kubectl takes a process and a tenth of a second of the processor.
        """
        port = urlsplit(self.server).port
        assert port is not None
        status, body = self._get(port, path)
        if status not in {200, 404}:
            raise ProcessFailedError(f"GET {path}: {status or 'no answer'}: {body.decode()}")
        return json.loads(body) if status == 200 else None

    def kubectl(
        self,
        *arguments: str | os.PathLike[str],
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        check: bool = True,
        kubeconfig: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, as admin or with another kubeconfig, apart from the user's own settings."""
        return Kubectl(
            self._programs.binaries / "kubectl",
            self.admin_kubeconfig,
            self.workdir / "kubectl-cache",
            tuple(self.site.prefix),
        )(*arguments, input=input, check=check, kubeconfig=kubeconfig)

    def certificate(self, common_name: str, sans: Iterable[str] = ()) -> Certificate:
        """Sign a certificate, for serving or calling, with the cluster's own authority."""
        return self._programs.authority.issue(common_name, sans=sans)

    def kubeconfig_for_node(self, node: str) -> Path:
        """Write the kubeconfig of a kubelet, held to its own node by NodeRestriction."""
        return self.kubeconfig_for_user(f"system:node:{node}", organization="system:nodes")

    def kubeconfig_for_user(self, user: str, *, organization: str | None = None) -> Path:
        """Write the kubeconfig of a user, perhaps in a group, that logs in by certificate."""
        return kubeconfig.by_certificate(
            self.workdir / f"{user.replace(':', '-')}.kubeconfig",
            server=self.server,
            ca_file=self.ca_file,
            pair=self._programs.authority.issue(user, organization=organization),
        )

    def service_account_token(self, namespace: str, name: str, audience: str) -> Path:
        """Write a ServiceAccount's token for another audience, good for a day."""
        return self._token(self.workdir / "tokens", (namespace, name), audience)

    def kubeconfig_for_service_account(self, namespace: str, name: str, folder: Path) -> Path:
        """Write a kubeconfig, and the token file it names, for a ServiceAccount that exists."""
        return kubeconfig.by_token_file(
            folder / f"{namespace}-{name}.kubeconfig",
            server=self.server,
            ca_file=self.ca_file,
            token_file=self._token(folder, (namespace, name)),
            namespace=namespace,
        )

    def _token(self, folder: Path, account: tuple[str, str], audience: str = "") -> Path:
        namespace, name = account
        request = ["create", "token", name, "--namespace", namespace, "--duration=24h"]
        if audience:
            request.append(f"--audience={audience}")
        token = self.kubectl(*request).stdout.strip()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / ".".join(filter(None, (f"{namespace}-{name}", audience, "token")))
        path.touch(mode=0o600)
        path.write_text(token, encoding="ascii")
        return path

    def mutating_requests(self) -> list[audit_log.MutatingRequest]:
        """Give every finished write so far.

        The apiserver logs a write just after answering it: wait for the last one to show.
        """
        return list(audit_log.mutating_requests(self.audit_log))
