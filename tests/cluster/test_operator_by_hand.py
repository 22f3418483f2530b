"""The lines of README, typed as they stand there: the `product` fixture types those before."""

import re

import pytest
from tests.cluster import installation, outside, readme
from tests.cluster.stage import Stage

pytestmark = pytest.mark.timeout(240)

NAMESPACE = "gpu-demo"


def test_readmes_samples_live_and_end(stage: Stage) -> None:
    """All seven can be deleted, and the one that was closed tells the evidence of its end.

    Typed this fast, an agent that looks every five seconds may not have seen it hold anything.
    """
    try:
        told = readme.typed(readme.trying())
    finally:
        gone = ("--ignore-not-found", "--timeout=120s")
        stage.kubectl("delete", "namespace", NAMESPACE, *gone)

    assert re.search(r'"verdict":"(Freed|NothingHeld)"', told)
    assert 'session.gpusession.dev "chat" deleted' in told


def test_the_bare_base_is_enough_where_nvidias_runtime_is_the_default(stage: Stage) -> None:
    """`kubectl apply -k manifests/` knows nothing of this cluster, and everything gets ready."""
    try:
        readme.typed("kubectl apply -k manifests/")
        installation.wait_rolled_out(stage.cluster)
        bound = stage.start("plain", "--memory=1Gi")
        ended = stage.close("plain")
    finally:
        readme.typed(f"kubectl apply -k {installation.OVERLAY}")
        installation.wait_rolled_out(stage.cluster)

    assert ended["release"]["verdict"] == "Freed"
    assert outside.living(bound["podUID"]) == []
