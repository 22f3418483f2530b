"""The command lines of etcd, kube-apiserver and kube-controller-manager.

Everything binds to loopback and asks for a certificate or a token: other users of the
machine get nothing.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.support import audit_log, kubeconfig
from tests.support.assets import kubernetes_assets
from tests.support.pki import Certificate, CertificateAuthority, service_account_keys

HOST = "127.0.0.1"
SERVICE_RANGE = "10.0.0.0/24"
SERVER_NAMES = (
    *("kubernetes", "kubernetes.default", "kubernetes.default.svc"),
    *("kubernetes.default.svc.cluster.local", "localhost", HOST, "10.0.0.1"),
)
ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True, slots=True)
class Programs:
    """The files that the three programs share, and how each is called."""

    workdir: Path
    binaries: Path
    authority: CertificateAuthority
    admin: Certificate
    audit_log: Path
    service_account_key: Path
    service_account_public: Path
    audit_policy: Path

    @classmethod
    def prepare(cls, workdir: Path) -> "Programs":
        """Find the programs and write keys, certificates and the audit policy."""
        binaries = kubernetes_assets()
        authority = CertificateAuthority(workdir / "pki")
        key, public = service_account_keys(workdir / "pki")
        policy = workdir / "audit-policy.yaml"
        policy.write_text(audit_log.POLICY, encoding="utf-8")
        return cls(
            workdir=workdir,
            binaries=binaries,
            authority=authority,
            admin=authority.issue("admin", organization="system:masters"),
            audit_log=workdir / "audit.log",
            service_account_key=key,
            service_account_public=public,
            audit_policy=policy,
        )

    def etcd(self, client_port: int, peer_port: int) -> list[str | os.PathLike[str]]:
        """One member, data not flushed to disk: it need not survive a power cut."""
        pair = self.authority.issue("etcd", sans=(HOST, "localhost"))
        client, peer = f"https://{HOST}:{client_port}", f"https://{HOST}:{peer_port}"
        arguments = {
            "name": "only",
            "data-dir": self.workdir / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"only={peer}",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }
        for prefix in ("", "peer-"):
            arguments |= {
                f"{prefix}cert-file": pair.cert,
                f"{prefix}key-file": pair.key,
                f"{prefix}trusted-ca-file": self.authority.ca_file,
                f"{prefix}client-cert-auth": "true",
            }
        return self._command("etcd", arguments)

    def apiserver(self, port: int, etcd_port: int) -> list[str | os.PathLike[str]]:
        """RBAC for all, no anonymous caller, every request in the audit log."""
        serving = self.authority.issue("kube-apiserver", sans=SERVER_NAMES)
        etcd_client = self.authority.issue("apiserver-etcd-client")
        arguments = {
            "bind-address": HOST,
            "advertise-address": HOST,
            "secure-port": port,
            "endpoint-reconciler-type": "none",  # it refuses loopback addresses, loudly
            "tls-cert-file": serving.cert,
            "tls-private-key-file": serving.key,
            "client-ca-file": self.authority.ca_file,
            "etcd-servers": f"https://{HOST}:{etcd_port}",
            "etcd-cafile": self.authority.ca_file,
            "etcd-certfile": etcd_client.cert,
            "etcd-keyfile": etcd_client.key,
            "anonymous-auth": "false",
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "service-cluster-ip-range": SERVICE_RANGE,
            "service-account-issuer": ISSUER,
            "service-account-signing-key-file": self.service_account_key,
            "service-account-key-file": self.service_account_public,
            "audit-policy-file": self.audit_policy,
            "audit-log-path": self.audit_log,
            "audit-log-maxsize": 0,  # no rotation: readers want one file
        }
        return self._command("kube-apiserver", arguments)

    def controller_manager(
        self, port: int, server: str, node_grace_seconds: int
    ) -> list[str | os.PathLike[str]]:
        """All controllers, each with its own ServiceAccount, as in a real cluster."""
        config = kubeconfig.by_certificate(
            self.workdir / "kube-controller-manager.kubeconfig",
            server=server,
            ca_file=self.authority.ca_file,
            pair=self.authority.issue("system:kube-controller-manager"),
        )
        arguments = {
            "kubeconfig": config,
            "bind-address": HOST,
            "secure-port": port,
            "leader-elect": "false",
            "use-service-account-credentials": "true",
            "service-account-private-key-file": self.service_account_key,
            "root-ca-file": self.authority.ca_file,
            "cluster-signing-cert-file": self.authority.ca_file,
            "cluster-signing-key-file": self.authority.ca_key,
            "kube-api-qps": 500,  # the usual 20 paces 45 controllers' first requests: seconds
            "kube-api-burst": 1000,
            "node-monitor-period": f"{max(1, node_grace_seconds // 8)}s",
            "node-monitor-grace-period": f"{node_grace_seconds}s",
        }
        return self._command("kube-controller-manager", arguments)

    def _command(self, name: str, arguments: dict[str, object]) -> list[str | os.PathLike[str]]:
        return [self.binaries / name, *(f"--{key}={value}" for key, value in arguments.items())]
