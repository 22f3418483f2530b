"""`make bench BENCH=name`: measures, prints a table, and names the JSON on the last line.

It fails only where it could not measure, never for a figure.
"""

import argparse
import asyncio
import importlib
import sys
from typing import Any

import uvloop
from tests.bench import figures
from tests.support.assets import AssetMissingError
from tests.support.processes import ProcessFailedError

BENCHES = {"heartbeats": 7, "expiry": 3, "reach": 3, "steady": 2}
"""Each by its module here, with how many rounds it takes unless told otherwise."""


def main() -> int:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHES))
    parser.add_argument("--rounds", type=int, help="how often to measure")
    asked = parser.parse_args()
    bench: Any = importlib.import_module(f"tests.bench.{asked.name}")
    rounds = BENCHES[asked.name] if asked.rounds is None else asked.rounds
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figure = runner.run(bench.measure(rounds))
    except (figures.NotMeasuredError, ProcessFailedError, AssetMissingError, TimeoutError) as error:
        print(f"[gpusession] not measured: {error!r}", file=sys.stderr)
        return 1
    path = figures.write(asked.name, {"bench": asked.name} | figure)
    print(bench.table(figure))
    print(path, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
