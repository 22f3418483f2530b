"""The images that the test cluster needs besides the product's: docker-archives in our cache.

`python -m tests.cluster images` makes all of them. An archive is named after what went into
it, so a second run builds nothing.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.support.assets import built
from tests.support.image import BASE, archive_of, engine, ensure_base
from tests.support.toolchain import REPOSITORY, c_compiler, cache_root, digest

PAUSE = "localhost/pause:1"
COREDNS = "localhost/coredns:1"
WORKLOAD = "gpusession.dev/simulated-workload:1"
"""As the samples call it, so that they run here as they are."""

_HERE = Path(__file__).parent
_CONTAINERS = _HERE / "containers"
_WORKLOAD_FILES = (
    Path("tests/support/workload.py"),
    Path("tests/support/nvml_simulator.py"),
    Path("tests/support/simulated_node/quantity.py"),
)


def archives() -> list[Path]:
    """Give all of them, ready to be loaded."""
    return [pause_archive(), coredns_archive(), workload_archive()]


def pause_archive() -> Path:
    """Give the image that keeps each pod's namespaces: one static program."""

    def fill(context: Path) -> None:
        source = _CONTAINERS / "pause.c"
        subprocess.run(
            [*c_compiler(), "-static", "-O2", "-o", context / "pause", source], check=True
        )

    return _archive(PAUSE, digest((_CONTAINERS / "pause.c").read_bytes()), fill)


def coredns_archive() -> Path:
    """Give the image of the DNS server, built from its pinned Go module: minutes, once."""
    folder = built("coredns", _HERE / "coredns", {"coredns": "."})
    return _archive(
        COREDNS,
        folder.name,
        lambda context: shutil.copy2(folder / "coredns", context / "coredns"),
    )


def workload_archive() -> Path:
    """Give the image of tests/support/workload.py, on the base that the product's has."""
    ensure_base(engine())
    base = engine().label(BASE, "gpusession.base")
    sources = [(REPOSITORY / path).read_bytes() for path in _WORKLOAD_FILES]

    def fill(context: Path) -> None:
        for path in _WORKLOAD_FILES:
            (context / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / path, context / path)

    return _archive(WORKLOAD, digest(base.encode(), *sources), fill)


def _archive(image: str, key: str, fill: Callable[[Path], object]) -> Path:
    """Give the docker-archive of an image, building it where no archive has this key."""
    name = image.rpartition("/")[2].replace(":", "-")
    containerfile = _CONTAINERS / f"{name.rpartition('-')[0]}.Containerfile"
    recipe = digest(key.encode(), containerfile.read_bytes())
    archive = cache_root() / "images" / f"{name}-{recipe}.tar"
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="image-", dir=archive.parent) as scratch:
        context = Path(scratch) / "context"
        context.mkdir()
        fill(context)
        shutil.copyfile(containerfile, context / "Dockerfile")
        engine().build(image, context, {}, f"building {image}")
        return archive_of(image, Path(scratch) / "image.tar").rename(archive)
