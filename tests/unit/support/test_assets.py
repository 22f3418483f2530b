"""Which programs are taken, and what a cached build is named after."""

import shutil
from pathlib import Path

import pytest
from tests.support import assets

GO_MOD = """\
module example

go 1.26.0

require k8s.io/kubernetes v1.36.3

require (
	k8s.io/kubernetes-other v9.9.9
)
"""


def test_go_version_comes_from_the_go_line() -> None:
    """The `go` line of go.mod decides which Go is new enough."""
    assert assets.go_version_needed(GO_MOD) == (1, 26, 0)


def test_kubernetes_is_stamped_with_the_pinned_version() -> None:
    """The built apiserver calls itself what go.mod requires."""
    flags = assets.linker_flags(GO_MOD)

    assert "version.gitVersion=v1.36.3 " in flags
    assert "version.gitMinor=36 " in flags


@pytest.mark.parametrize("changed", ["go.mod", "go.sum", "tools.go"])
def test_cache_key_follows_every_source(changed: str, tmp_path: Path) -> None:
    """A change of any pinned source is another build."""
    module = tmp_path / "kubernetes"
    shutil.copytree(assets.MODULE, module)
    before = assets.cache_key(module)

    with (module / changed).open("a", encoding="utf-8") as file:
        file.write("// changed\n")

    assert assets.cache_key(module) != before


def test_programs_of_nodes_are_a_build_of_their_own() -> None:
    """Whoever needs no kubelet builds none, though one go.mod pins them all."""
    assert assets.cache_key() != assets.cache_key(programs=assets.NODE_PROGRAMS)
    assert not assets.KUBERNETES.keys() & assets.NODE_PROGRAMS.keys()


def test_whole_kubebuilder_assets_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that holds all four programs is used as it is."""
    for name in assets.KUBERNETES:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))

    assert assets.kubernetes_assets() == tmp_path


def test_chosen_redis_server_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """$REDIS_SERVER is taken before anything on PATH."""
    monkeypatch.setenv("REDIS_SERVER", "/opt/redis/redis-server")

    assert assets.redis_server() == Path("/opt/redis/redis-server")
