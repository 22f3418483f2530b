"""The wall clock of a server under test, to be moved while it runs."""

import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support import assets
from tests.support.toolchain import REPOSITORY, cache_root, digest, published

SOURCE = REPOSITORY / "tests" / "support" / "clock_shift.c"


class ShiftedClock:
    """A shift in a file that servers with this environment follow at once."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def environment(self) -> Mapping[str, str]:
        """Give what a server needs to follow; it begins without a shift."""
        if not self._file.exists():
            self.move(0)
        return {"LD_PRELOAD": str(_library()), "CLOCK_SHIFT_FILE": str(self._file)}

    def move(self, seconds: int) -> None:
        """Set the shift; the file stays the same one, as servers have it mapped."""
        self._file.touch()
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", seconds))


def _library() -> Path:
    folder = cache_root() / "clock-shift" / digest(SOURCE.read_bytes())
    with published(folder) as made:
        if made is not None:
            flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror"]
            target = made / "clock_shift.so"
            subprocess.run([*assets.c_compiler(), *flags, SOURCE, "-o", target], check=True)
    return folder / "clock_shift.so"
