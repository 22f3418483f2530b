"""The Python side of kubelet's device plugin API, generated from the very Kubernetes that runs.

Nothing generated is kept in the repository: gRPC's generator is a wheel in our cache, and
the .proto file comes with the Go module that kubelet is built from.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.assets import MODULE, go_version_needed
from tests.support.toolchain import (
    REQUIREMENTS,
    AssetMissingError,
    cache_root,
    digest,
    go_tool,
    installed_wheel,
    output_of,
    published,
)

_PROTO = Path("pkg", "apis", "deviceplugin", "v1beta1", "api.proto")
WHEELS = REQUIREMENTS / "cluster.txt"


def python_path() -> tuple[Path, Path]:
    """Give the folders that make `import grpc` and `import deviceplugin_pb2_grpc` work."""
    wheels = installed_wheel(WHEELS)
    parts = ((MODULE / "go.sum").read_bytes(), WHEELS.read_bytes())
    target = cache_root() / "device-plugin-api" / digest(*parts)
    if not target.is_dir():
        with published(target) as folder:
            if folder is not None:
                _generate(folder, wheels)
    return wheels, target


def _generate(folder: Path, wheels: Path) -> None:
    shutil.copyfile(kubelet_module() / _PROTO, folder / "deviceplugin.proto")
    arguments = (f"--proto_path={folder}", f"--python_out={folder}", f"--grpc_python_out={folder}")
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *arguments, "deviceplugin.proto"],
        env=os.environ | {"PYTHONPATH": str(wheels)},
        check=True,
    )


def kubelet_module() -> Path:
    """Give the folder of k8s.io/kubelet, of the version that go.mod pins, in the module cache."""
    go = go_tool(go_version_needed((MODULE / "go.mod").read_text(encoding="utf-8")))
    output_of(go, "-C", MODULE, "mod", "download", "k8s.io/kubelet")
    found = output_of(go, "-C", MODULE, "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubelet").strip()
    if not found:
        raise AssetMissingError(f"go found no k8s.io/kubelet for {MODULE}")
    return Path(found)
