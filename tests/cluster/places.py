"""Where programs on a node find things: the node's own folders are bound over these."""

from pathlib import Path

SIMULATOR = Path("/run/nvml-simulator")
STATE, LIBRARY = SIMULATOR / "state", SIMULATOR / "lib"

DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
OFFERED = DEVICE_PLUGINS / "simulated-gpu.offered"
"""There while kubelet knows the GPUs; it removes it, with all else here, when it starts."""
