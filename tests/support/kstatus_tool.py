"""Asks kstatus, the library by which Flux judges an object, from its pinned Go module.

Building it took 40 seconds on two busy cores, once per machine.
"""

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.assets import built

MODULE = Path(__file__).resolve().parent / "kstatus"
PROGRAMS = {"kstatus": "."}


class Health(NamedTuple):
    """What kstatus says: InProgress, Current, Terminating, Failed, and a sentence."""

    status: str
    message: str


def kstatus(seen: dict[str, Any]) -> Health:
    """Have an object judged."""
    program = built("kstatus", MODULE, PROGRAMS) / "kstatus"
    done = subprocess.run(
        [program], input=json.dumps(seen), capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return Health(**json.loads(done.stdout))


if __name__ == "__main__":
    print(built("kstatus", MODULE, PROGRAMS))
