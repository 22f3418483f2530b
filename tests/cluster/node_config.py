"""The configuration files of a node's programs."""

import json
from pathlib import Path
from typing import Any

from tests.cluster import network
from tests.cluster.packages import CNI_PROGRAMS
from tests.cluster.places import SIMULATOR
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
