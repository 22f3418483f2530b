"""What a client must not pull in, seen in a fresh interpreter."""

import subprocess
import sys

HEAVY = ("kopf", "kubernetes", "redis", "pynvml", "prometheus_client", "pydantic", "structlog")


def test_import_pulls_in_nothing_of_the_operator() -> None:
    """A notebook needs aiohttp and msgspec, not a Kubernetes operator."""
    program = "import sys, gpusession.client; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    imported = {name.partition(".")[0] for name in output.stdout.decode().split()}

    assert "aiohttp" in imported
    assert imported.isdisjoint(HEAVY)
