"""Builds the product's image with buildah, podman or docker, and packs it for a node.

`python -m tests.support.image` (make image) makes localhost/gpusession:dev and an archive for
`ctr images import`. Where the Dockerfile's base cannot be pulled, a base is made of the
machine's own Debian packages, from the mirror that its apt uses.
"""

import argparse
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Process, ProcessFailedError
from tests.support.progress import progress, say
from tests.support.toolchain import (
    REPOSITORY,
    REQUIREMENTS,
    AssetMissingError,
    cache_root,
    digest,
    installed_wheel,
    output_of,
)

IMAGE = "localhost/gpusession:dev"
BASE = "localhost/gpusession-base:dev"
BUILDER = "localhost/gpusession-builder:dev"
"""The base with uv and this machine's trust store; nothing of both gets into the image."""

DEBIAN = "debian"
"""Asks for the base of Debian packages, as if no registry could be reached."""

PACKAGES = ("ca-certificates", "python3-minimal", "libpython3-stdlib", "netbase", "tzdata")
"""Python without pip, venv and distutils, and what it reads: CAs, protocols, time zones."""

LEFT_OUT = (
    *("var/cache", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/man"),
    *("usr/share/locale", "etc/apt/sources.list", "etc/apt/sources.list.d"),
    *("etc/resolv.conf", "etc/hostname", "etc/machine-id"),
)
"""In the base: what no process reads, and what debootstrap copied from this machine."""

PULL_SECONDS = 120.0
BUILD_SECONDS = 1800.0
"""A build took 26 s, a debootstrap 85 s, on two busy cores and a good line."""

TRUST_STORE = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True, slots=True)
class Engine:
    """A program that builds images: buildah, podman or docker."""

    program: str

    @property
    def _isolation(self) -> list[str]:
        # chroot needs no user namespaces and no runtime; docker's daemon has its own.
        return [] if self.program == "docker" else ["--isolation=chroot"]

    def build(self, tag: str, context: Path, arguments: Mapping[str, str], what: str) -> None:
        """Build an image from a folder with a Dockerfile; raises with the end of the log."""
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        layers = ["--layers"] if self.program == "buildah" else []
        argv = [self.program, "build", *self._isolation, *layers, f"--tag={tag}", *options]
        log = context / "build.log" if context != REPOSITORY else _log("image")
        _run([*argv, f"--file={context / 'Dockerfile'}", context], log=log, what=what)

    def can_pull(self, image: str) -> bool:
        """Try to fetch an image."""
        process = Process([self.program, "pull", "--quiet", image], log=_log("pull"))
        with progress(f"pulling {image}"), process:
            try:
                return process.wait(PULL_SECONDS) == 0
            except ProcessFailedError:  # no answer in time
                return False

    def label(self, image: str, name: str) -> str:
        """Read a label; empty where the image or the label is missing."""
        template = {
            "buildah": f'{{{{index .OCIv1.Config.Labels "{name}"}}}}',
            "podman": f'{{{{index .Labels "{name}"}}}}',
            "docker": f'{{{{index .Config.Labels "{name}"}}}}',
        }[self.program]
        kind = ["--type=image"] if self.program != "podman" else []
        return output_of(self.program, "inspect", *kind, f"--format={template}", image).strip()

    def save(self, image: str, archive: Path) -> None:
        """Write a docker-archive, which every container runtime can import."""
        argv = {
            "buildah": ["push", image, f"docker-archive:{archive}:{image}"],
            "podman": ["save", "--format=docker-archive", f"--output={archive}", image],
            "docker": ["save", f"--output={archive}", image],
        }[self.program]
        _run([self.program, *argv], log=_log("save"), what=f"packing {image}")


def engine() -> Engine:
    """Give the first engine that works here; root on Debian gets buildah installed."""
    for program in ("buildah", "podman", "docker"):
        if shutil.which(program) and output_of(program, "info"):
            return Engine(program)
    _installed("buildah")
    return Engine("buildah")


def build_image(base: str | None = None) -> str:
    """Build localhost/gpusession:dev and give its name.

    `base` is an image or "debian"; without one the Dockerfile's own is tried first.
    """
    with_engine = engine()
    chosen = base or _default_base()
    if chosen == DEBIAN or (base is None and not with_engine.can_pull(chosen)):
        chosen = ensure_base(with_engine)
    _make_builder(with_engine, chosen)
    arguments = {
        "BASE_IMAGE": chosen,
        "BUILD_IMAGE": BUILDER,
        "VERSION": _version(),
        "REVISION": output_of("git", "-C", REPOSITORY, "rev-parse", "HEAD").strip() or "unknown",
    }
    with_engine.build(IMAGE, REPOSITORY, arguments, f"building {IMAGE} on {chosen}")
    return IMAGE


def archive_of(image: str, archive: Path) -> Path:
    """Pack an image for `ctr --namespace k8s.io images import`."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.unlink(missing_ok=True)  # buildah adds to an archive that exists
    engine().save(image, archive)
    return archive


def ensure_base(with_engine: Engine) -> str:
    """Give the base of Debian packages, made anew each week for the sake of its updates."""
    mirror, release = _apt_source()
    week = time.strftime("%G-%V")
    key = digest(" ".join((release, week, *PACKAGES, *LEFT_OUT)).encode())
    if with_engine.label(BASE, "gpusession.base") == key:
        return BASE
    debootstrap = _installed("debootstrap")
    with tempfile.TemporaryDirectory(prefix="gpusession-base-") as scratch:
        folder = Path(scratch)
        root = folder / "root"
        argv = [debootstrap, "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        what = f"making a base of {release}'s packages (once a week)"
        _run([*argv, release, root, mirror], log=_log("debootstrap"), what=what)
        for name in LEFT_OUT:
            _remove(root / name)
        context = folder / "context"
        context.mkdir()
        with tarfile.open(context / "root.tar", "w") as archive:
            archive.add(root, arcname=".", filter=_without_devices)
        recipe = f"FROM scratch\nADD root.tar /\nLABEL gpusession.base={key}\n"
        (context / "Dockerfile").write_text(recipe, encoding="utf-8")
        with_engine.build(BASE, context, {}, f"building {BASE}")
    return BASE


def _make_builder(with_engine: Engine, base: str) -> None:
    uv = installed_wheel(REQUIREMENTS / "uv.txt") / "bin" / "uv"
    with tempfile.TemporaryDirectory(prefix="gpusession-builder-") as scratch:
        context = Path(scratch)
        shutil.copy2(uv, context / "uv")
        recipe = f"FROM {base}\nCOPY uv /usr/local/bin/uv\n"
        if TRUST_STORE.is_file():
            shutil.copy(TRUST_STORE, context / TRUST_STORE.name)
            recipe += f"COPY {TRUST_STORE.name} {TRUST_STORE}\n"
        (context / "Dockerfile").write_text(recipe, encoding="utf-8")
        with_engine.build(BUILDER, context, {}, f"building {BUILDER}")


def _default_base() -> str:
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", text, re.MULTILINE)
    if found is None:
        raise AssetMissingError("Dockerfile: no ARG BASE_IMAGE with a default")
    return found.group(1)


def _version() -> str:
    text = (REPOSITORY / "operator" / "gpusession" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return found.group(1) if found else "0.0.0"


def _apt_source() -> tuple[str, str]:
    """Ask apt where the machine's own release comes from."""
    release = output_of("sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME").strip()
    template = "$(SITE) $(RELEASE) $(COMPONENT)"
    targets = output_of("apt-get", "indextargets", "--format", template, "Created-By: Packages")
    for line in targets.splitlines():
        site, *where = line.split()
        if where == [release, "main"]:
            return site, release
    raise AssetMissingError(
        "no base image can be pulled, and apt has no source for this machine's release; "
        "name a base that is here: make image BASE=..."
    )


def _installed(program: str) -> str:
    """Give a program's path; root on Debian gets its package of the same name."""
    if found := shutil.which(program):
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise AssetMissingError(f"{program} is needed: install it, or be root where apt-get is")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    for argv in (["update"], ["install", "--yes", "--no-install-recommends", program]):
        what = f"apt-get {' '.join(argv)}"
        _run(["apt-get", "-qq", *argv], log=_log("apt-get"), what=what, env=environment)
    return program


def _without_devices(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.isdev() else member


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _log(name: str) -> Path:
    folder = cache_root() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


def _run(
    argv: list[str | os.PathLike[str]],
    *,
    log: Path,
    what: str,
    env: Mapping[str, str] | None = None,
) -> None:
    process = Process(argv, log=log, env=os.environ | dict(env or {}))
    with progress(what), process:
        if process.wait(BUILD_SECONDS):
            raise AssetMissingError(f"{what} failed:\n{process.log_tail(40)}")


def main() -> None:
    """Build, pack, and say what was made and how to bring it to a node."""
    parser = argparse.ArgumentParser(prog="make image", description=__doc__)
    parser.add_argument("--base", help=f"base image, or {DEBIAN!r}; default: the Dockerfile's")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist" / "gpusession.tar")
    asked = parser.parse_args()
    archive = archive_of(build_image(asked.base), asked.output)
    say(f"{IMAGE}: {archive.stat().st_size / 1e6:.0f} MB in {archive}")
    say(f"on a node: ctr --namespace k8s.io images import {archive.name}")


if __name__ == "__main__":
    try:
        main()
    except AssetMissingError as error:
        sys.exit(f"[gpusession] {error}")
