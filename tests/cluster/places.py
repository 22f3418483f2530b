"""Where programs on a node find the simulated GPUs: the node's own folders, bound over these."""

from pathlib import Path

SIMULATOR = Path("/run/nvml-simulator")
STATE, LIBRARY = SIMULATOR / "state", SIMULATOR / "lib"
