"""Whether a machine can carry the cluster is found out before anything is built, and said."""

import os
import subprocess
import sys

import pytest
from tests.cluster.suitability import obstacles
from tests.support.toolchain import REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's capabilities")

NO_CAPABILITY = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def test_nothing_stands_against_a_cluster_where_these_tests_run() -> None:
    """Else the stories would have been left out."""
    assert obstacles() == []


def test_root_of_a_plain_container_is_told_what_it_may_not() -> None:
    """Without its capabilities, root makes no namespace."""
    asked = [*NO_CAPABILITY, sys.executable, "-m", "tests.cluster", "obstacles"]
    told = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert "no namespaces with mounts of their own: unshare" in told.stdout
