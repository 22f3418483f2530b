"""One image, one real cluster for the whole run, and the product on it for those who ask.

The cluster comes up with the first test that wants it, and goes down however the run ends.
"""

import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.cluster import installation, suitability
from tests.cluster.diagnosis import diagnosis
from tests.cluster.product_logs import ProductLogs
from tests.cluster.real_cluster import RealCluster
from tests.cluster.stage import Stage
from tests.support.image import DEBIAN, archive_of, build_image

LAST = "test_another_shell_takes_it_down_and_nothing_is_left"
TOOK: dict[str, float] = {}
"""Seconds of what is done once, before any test; the summary tells them."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the test that takes the cluster down be the last one."""
    items.sort(key=lambda item: item.name == LAST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Leave in the output of a failure what the cluster looked like at that moment."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and cluster is not None and cluster.exists:
        report.sections.append(("the cluster at that moment", diagnosis(cluster)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell where the time went."""
    for what, seconds in TOOK.items():
        terminalreporter.write_line(f"[gpusession] {what}: {seconds:.1f} s")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Note for the summary how long a step took."""
    began_at = time.monotonic()
    yield
    TOOK[what] = time.monotonic() - began_at


@pytest.fixture(scope="session")
def built_image() -> str:
    """Give the product's image, built from this working tree and Debian's packages."""
    with timed("building the image"):
        return build_image(DEBIAN)


@pytest.fixture(scope="session")
def cluster() -> Iterator[RealCluster]:
    """Give the machine's cluster, made for this run; SIGTERM ends the run and the cluster."""
    if obstacles := suitability.obstacles():
        pytest.skip("; ".join(obstacles))
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("told to end", returncode=1))
    cluster = RealCluster()
    with timed("bringing the cluster up"):
        cluster.up()
    try:
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def product_logs(cluster: RealCluster) -> Iterator[ProductLogs]:
    """Give the logs of the product's Pods, from the first one on."""
    with ProductLogs(node.folder for node in cluster.nodes.values()) as logs:
        yield logs


@pytest.fixture(scope="session")
def product(
    cluster: RealCluster,
    product_logs: ProductLogs,  # noqa: ARG001 - they begin before it
    built_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Put image and manifests of this working tree on it; give a folder for an upgrade."""
    folder = tmp_path_factory.mktemp("product")
    with timed("putting the product on it"):
        cluster.load_image(archive_of(built_image, folder / "gpusession.tar"))
        installation.install(cluster)
    return folder


@pytest.fixture
def stage(
    cluster: RealCluster,
    product: Path,  # noqa: ARG001 - it is there
    product_logs: ProductLogs,
) -> Iterator[Stage]:
    """Give an empty namespace; afterwards nothing of the story lives, is stuck or complains."""
    stage = Stage(cluster)
    yield stage
    stage.clear()
    assert stage.unexpected(product_logs.faults()) == []
