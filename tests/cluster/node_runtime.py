"""Adds to a container what makes its node a machine of its own, before runc creates it.

Each gets the boot id of the node in place of the real machine's. Under the name nvidia, it
does what NVIDIA's container runtime does: who asks for GPUs by variable is shown NVML. It
runs for every container, in a Python without packages: standard library only.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

BOOT_ID = "proc/sys/kernel/random/boot_id"
STATE, LIBRARY = "/run/nvml-simulator/state", "/run/nvml-simulator/lib"


def add_boot_id(config: dict[str, Any], *, bundle: Path, boot_id: Path) -> None:
    """Mount over the container's own /proc, which runc does not let a mere mount touch."""
    root = bundle / config["root"]["path"]
    hook = {
        "path": shutil.which("mount"),
        "args": ["mount", "--bind", str(boot_id), str(root / BOOT_ID)],
    }
    config.setdefault("hooks", {}).setdefault("createContainer", []).append(hook)


def add_gpus(config: dict[str, Any]) -> None:
    """Show the simulator where NVIDIA_VISIBLE_DEVICES names something, and only once."""
    environment = config["process"].setdefault("env", [])
    asked = [entry.partition("=")[2] for entry in environment if entry.startswith("NVIDIA_VISIBLE")]
    mounted = {mount["destination"] for mount in config["mounts"]}
    if STATE in mounted or not asked or asked[-1] in {"", "void", "none"}:
        return
    for path, mode in ((STATE, "rw"), (LIBRARY, "ro")):
        options = ["rbind", "rprivate", mode]
        config["mounts"].append(
            {"destination": path, "source": path, "type": "bind", "options": options}
        )
    environment += [f"NVML_SIMULATOR_STATE={STATE}", f"LD_LIBRARY_PATH={LIBRARY}"]


def main() -> None:
    """Change the bundle that runc is about to read; called with the runtime's name first."""
    runtime, *arguments = sys.argv[1:]
    bundle = Path(arguments[arguments.index("--bundle") + 1])
    file = bundle / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    boot_id = Path(os.environ["NODE_DIR"], "etc", "boot-id")
    add_boot_id(config, bundle=bundle, boot_id=boot_id)
    if runtime == "nvidia":
        add_gpus(config)
    file.write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
