"""The command lines of etcd, kube-apiserver, kube-controller-manager and kube-scheduler.

Everything binds to loopback, or to an address inside a network namespace, and asks for a
certificate or a token: other users of the machine get nothing.
"""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from tests.support import audit_log, kubeconfig
from tests.support.assets import cluster_assets, kubernetes_assets
from tests.support.pki import Certificate, CertificateAuthority, service_account_keys

HOST = "127.0.0.1"
ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True, slots=True)
class Site:
    """Where a control plane runs, and what for; as it stands, loopback and no real node."""

    host: str = HOST
    """The address that the apiserver listens on and tells others."""
    service_range: str = "10.0.0.0/24"
    network: Path | None = None
    """The network namespace that everything runs in; None is the caller's."""
    real_nodes: bool = False
    """Kubelets will come: a scheduler places Pods, and the apiserver calls kubelets."""
    outlives: bool = False
    """The programs stay when the process that started them ends."""

    @property
    def server_names(self) -> tuple[str, ...]:
        """What callers may know the apiserver as, the first service address among it."""
        first = ipaddress.ip_network(self.service_range)[1]
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
        return (*names, f"{names[2]}.cluster.local", HOST, self.host, str(first))

    @property
    def prefix(self) -> list[str]:
        """The start of a command line that is to run in the network of the site."""
        return [] if self.network is None else ["nsenter", f"--net={self.network}"]


@dataclass(frozen=True, slots=True)
class Programs:
    """The files that the programs share, and how each is called."""

    site: Site
    workdir: Path
    binaries: Path
    authority: CertificateAuthority
    admin: Certificate
    audit_log: Path
    service_account_key: Path
    service_account_public: Path
    audit_policy: Path

    @classmethod
    def prepare(cls, workdir: Path, site: Site) -> "Programs":
        """Find the programs and write keys, certificates and the audit policy."""
        binaries = kubernetes_assets()
        authority = CertificateAuthority(workdir / "pki")
        key, public = service_account_keys(workdir / "pki")
        policy = workdir / "audit-policy.yaml"
        policy.write_text(audit_log.POLICY, encoding="utf-8")
        return cls(
            site=site,
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
        host = self.site.host
        pair = self.authority.issue("etcd", sans=(host, "localhost"))
        client, peer = f"https://{host}:{client_port}", f"https://{host}:{peer_port}"
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
        serving = self.authority.issue("kube-apiserver", sans=self.site.server_names)
        etcd_client = self.authority.issue("apiserver-etcd-client")
        arguments = {
            "bind-address": self.site.host,
            "advertise-address": self.site.host,
            "secure-port": port,
            "tls-cert-file": serving.cert,
            "tls-private-key-file": serving.key,
            "client-ca-file": self.authority.ca_file,
            "etcd-servers": f"https://{self.site.host}:{etcd_port}",
            "etcd-cafile": self.authority.ca_file,
            "etcd-certfile": etcd_client.cert,
            "etcd-keyfile": etcd_client.key,
            "anonymous-auth": "false",
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "service-cluster-ip-range": self.site.service_range,
            "service-account-issuer": ISSUER,
            "service-account-signing-key-file": self.service_account_key,
            "service-account-key-file": self.service_account_public,
            "audit-policy-file": self.audit_policy,
            "audit-log-path": self.audit_log,
            "audit-log-maxsize": 0,  # no rotation: readers want one file
            **self._towards_nodes(),
        }
        return self._command("kube-apiserver", arguments)

    def _towards_nodes(self) -> dict[str, object]:
        if not self.site.real_nodes:
            return {"endpoint-reconciler-type": "none"}  # it refuses loopback addresses, loudly
        pair = self.authority.issue("apiserver-kubelet-client", organization="system:masters")
        return {
            "allow-privileged": "true",
            "kubelet-certificate-authority": self.authority.ca_file,
            "kubelet-client-certificate": pair.cert,
            "kubelet-client-key": pair.key,
            "kubelet-preferred-address-types": "InternalIP",
        }

    def controller_manager(
        self, port: int, server: str, node_grace_seconds: int
    ) -> list[str | os.PathLike[str]]:
        """All controllers, each with its own ServiceAccount, as in a real cluster."""
        config = self._kubeconfig("kube-controller-manager", server)
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

    def scheduler(self, port: int, server: str) -> list[str | os.PathLike[str]]:
        """Place Pods, which nobody but real nodes has a use for."""
        config = self._kubeconfig("kube-scheduler", server)
        arguments = {
            "kubeconfig": config,
            "authentication-kubeconfig": config,
            "authorization-kubeconfig": config,
            "bind-address": HOST,
            "secure-port": port,
            "leader-elect": "false",
        }
        return self._command("kube-scheduler", arguments, binaries=cluster_assets())

    def _kubeconfig(self, name: str, server: str) -> Path:
        return kubeconfig.by_certificate(
            self.workdir / f"{name}.kubeconfig",
            server=server,
            ca_file=self.authority.ca_file,
            pair=self.authority.issue(f"system:{name}"),
        )

    def _command(
        self, name: str, arguments: dict[str, object], *, binaries: Path | None = None
    ) -> list[str | os.PathLike[str]]:
        program = (binaries or self.binaries) / name
        return [program, *(f"--{key}={value}" for key, value in arguments.items())]
