"""Command line: which process to be, with settings from the environment and a file.

The environment wins over the file. Names that no setting has are refused in both, since a
mistyped limit would silently be the default.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import uvloop
import yaml
from pydantic import ValidationError

from gpusession.errors import Deposed, Misconfigured, NotWatching
from gpusession.settings import (
    AgentSettings,
    ControllerSettings,
    GatewaySettings,
    ProcessSettings,
)

_PREFIX = "GPUSESSION_"

_PROCESSES: Mapping[str, type[ProcessSettings]] = {
    "agent": AgentSettings,
    "controller": ControllerSettings,
    "gateway": GatewaySettings,
}

_LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "gateway": uvloop.new_event_loop,  # its work is sockets; the others wait for few
}

_COMMANDS: Mapping[str, str] = {"beat": "gpusession.client.command"}
"""What is no process of the product: it has arguments instead of settings."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one process or command until it ends; exit with 2 where it must not run as set up.

    A controller ends with 1 where only another life helps: deposed, or without a watch.
    """
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in _COMMANDS:
        sys.exit(import_module(_COMMANDS[words[0]]).main(words[1:]))
    parser = argparse.ArgumentParser(
        prog="gpusession",
        description="GPU session operator.",
        epilog="A client's heartbeat for shells: gpusession beat --help.",
    )
    parser.add_argument("process", choices=sorted(_PROCESSES), help="which process to be")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    asked = parser.parse_args(words)
    try:
        settings = load_settings(_PROCESSES[asked.process], asked.config, os.environ)
        process = import_module(f"gpusession.{asked.process}.main")  # only what it needs
        with asyncio.Runner(loop_factory=_LOOPS.get(asked.process)) as runner:
            runner.run(process.run(settings))
    except Misconfigured as error:
        _leave(asked.process, error, code=2)
    except BaseExceptionGroup as group:
        known, rest = group.split((Deposed, NotWatching))
        if known is None or rest is not None:
            raise
        _leave(asked.process, next(iter(_leaves(known))), code=1)


def _leave(process: str, error: BaseException, *, code: int) -> NoReturn:
    sys.stderr.write(f"gpusession {process}: {' '.join(str(error).split())}\n")
    sys.exit(code)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def load_settings(
    kind: type[ProcessSettings], file: Path | None, environment: Mapping[str, str]
) -> ProcessSettings:
    """Read the settings of one process; raises Misconfigured with all that is wrong."""
    fields = {_PREFIX + name.upper(): name for name in kind.model_fields}
    given = {name.upper() for name in environment if name.upper().startswith(_PREFIX)}
    unknown = sorted(given - set(fields))
    if unknown:
        raise Misconfigured(
            f"no such setting: {', '.join(unknown)} (variables of Services named gpusession-* "
            "look alike: set enableServiceLinks: false)"
        )
    from_file = _read_yaml(file) if file is not None else {}
    values = {
        name: value for name, value in from_file.items() if _PREFIX + name.upper() not in given
    }
    try:
        return kind(**values)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise Misconfigured("; ".join(problems)) from error


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise Misconfigured(f"{file}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise Misconfigured(f"{file}: names and values are expected")
    return values
