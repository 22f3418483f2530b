"""The configuration files of a node's programs."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.cluster import network
from tests.cluster.packages import CNI_PROGRAMS
from tests.cluster.places import OFFERED, SIMULATOR
from tests.support.pki import Certificate

MOUNTS = {
    "kubelet": "/var/lib/kubelet",
    "containerd-run": "/run/containerd",
    "log": "/var/log",
    "cni": "/var/lib/cni",
    "cni-config": "/etc/cni/net.d",
    "netns": "/run/netns",
    "agent": "/var/lib/gpusession",
    "simulator": str(SIMULATOR),
}
"""Folders of a node, and the places where its programs and manifests expect them."""

VOLATILE = ("containerd-run", "netns")
"""These stand for a tmpfs: empty after a boot."""

_CONTAINERD = """\
version = 2
root = "{folder}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "nvidia"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "/etc/cni/net.d"
"""

_RUNTIME = """\
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
      BinaryName = "{folder}/bin/{name}"
"""

RUNTIMES = ("runc", "nvidia")
"""Both are node_runtime.sh; the second shows GPUs to whoever asks by variable.

It is the default, as on most GPU nodes, so that the bare base finds NVML here too.
"""


def containerd(folder: Path) -> str:
    """Keep images on the node's disk and everything else where a boot empties it."""
    runtimes = [_RUNTIME.format(folder=folder, name=name) for name in RUNTIMES]
    return _CONTAINERD.format(folder=folder, cni=CNI_PROGRAMS) + "".join(runtimes)


def cni(number: int) -> dict[str, Any]:
    """Join pods by a bridge; the other node's pods are a route away, so nothing is masked."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": network.pod_range(number)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, portmap]}


def kubelet(folder: Path, *, cgroup: str, ca_file: Path, serving: Certificate) -> dict[str, Any]:
    """Authenticate and authorize every caller, evict nobody, leave the host's files alone."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",  # noqa: S104 - inside the node's own network namespace
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(ca_file)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(serving.cert),
        "tlsPrivateKeyFile": str(serving.key),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "evictionHard": {},
        "localStorageCapacityIsolation": False,
        "clusterDNS": [network.DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(folder / "etc" / "resolv.conf"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "nodeStatusUpdateFrequency": "4s",
        "serializeImagePulls": False,
    }


_LOGIN = """\
#!/bin/sh
until [ -e {offered} ]; do
    sleep 0.05
done
exec cat {credential}
"""


def write_kubelet_login(folder: Path, kubeconfig: Path) -> None:
    """Have kubelet log in, and so hear of its Pods, only once it knows the node's GPUs.

    After a boot it refuses a Pod for good whose GPU's plugin is later than its first look at the
    Pod (kubernetes/kubernetes issue 125579): whoever is quicker would decide what a test sees.
    """
    config = json.loads(kubeconfig.read_text(encoding="utf-8"))
    (user,) = config["users"]
    pair = user["user"]
    status = {
        "clientCertificateData": Path(pair["client-certificate"]).read_text(encoding="ascii"),
        "clientKeyData": Path(pair["client-key"]).read_text(encoding="ascii"),
    }
    kind = {"apiVersion": "client.authentication.k8s.io/v1"}
    credential, login = folder / "kubelet-credential.json", folder / "kubelet-login"
    credential.touch(mode=0o600)
    write_json(credential, kind | {"kind": "ExecCredential", "status": status})
    login.write_text(_LOGIN.format(offered=OFFERED, credential=credential), encoding="utf-8")
    login.chmod(0o755)
    user["user"] = {"exec": kind | {"command": str(login), "interactiveMode": "Never"}}
    write_json(kubeconfig, config)
    shutil.move(kubeconfig, folder / "kubelet.kubeconfig")


def kube_proxy(folder: Path, name: str) -> dict[str, Any]:
    """Write Services into nftables."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(folder / "etc" / "kube-proxy.kubeconfig")},
        "hostnameOverride": name,
        "clusterCIDR": network.POD_RANGE,
        "conntrack": {"maxPerCore": 0},
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a configuration; JSON is YAML enough."""
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
