"""Prints how large the code is and fails where a part has outgrown its hard limit.

    python -m tests.support.sizes

A part beyond "look again" is listed: split it by topic, never into part 1 and part 2.
"""

import ast
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.toolchain import REPOSITORY

PACKAGE, TESTS = REPOSITORY / "operator" / "gpusession", REPOSITORY / "tests"


class Limit(NamedTuple):
    """Where to look again, and where to stop."""

    look_again: int
    hard: int


LIMITS = {
    "module": Limit(300, 450),
    "function": Limit(25, 40),  # statements, without the docstring
    "class": Limit(9, 12),  # public methods
    "Lua script": Limit(40, 60),
    "test module": Limit(300, 500),
}


class Part(NamedTuple):
    """One measured thing."""

    kind: str
    name: str
    size: int


def _statements(function: ast.AST) -> int:
    inner = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
    return inner - (ast.get_docstring(function) is not None)  # type: ignore[arg-type]


def _parts_of(tree: ast.Module, where: str) -> Iterator[Part]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Part("function", f"{where}:{node.name}", _statements(node))
        elif isinstance(node, ast.ClassDef):
            methods = (
                n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
            )
            public = sum(not method.name.startswith("_") for method in methods)
            yield Part("class", f"{where}:{node.name}", public)


def measure() -> Iterator[Part]:
    """Measure everything that has a limit."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text, where = path.read_text(), str(path.relative_to(REPOSITORY))
        yield Part("module", where, text.count("\n"))
        yield from _parts_of(ast.parse(text), where)
    for path in sorted(PACKAGE.rglob("*.lua")):
        yield Part("Lua script", str(path.relative_to(REPOSITORY)), path.read_text().count("\n"))
    for path in sorted(TESTS.rglob("*.py")):
        yield Part("test module", str(path.relative_to(REPOSITORY)), path.read_text().count("\n"))


def main() -> int:
    """Print the table; return 1 if a hard limit is broken."""
    parts = list(measure())
    print(f"{'kind':<12} {'count':>6} {'median':>7} {'p90':>5} {'max':>5} {'hard':>5}")
    for kind, limit in LIMITS.items():
        sizes = sorted(part.size for part in parts if part.kind == kind)
        if sizes:
            middle, high = sizes[len(sizes) // 2], sizes[len(sizes) * 9 // 10]
            print(
                f"{kind:<12} {len(sizes):>6} {middle:>7} {high:>5} {sizes[-1]:>5} {limit.hard:>5}"
            )
    broken = [part for part in parts if part.size > LIMITS[part.kind].hard]
    for part in sorted(parts, key=lambda part: part.kind):
        if part.size > LIMITS[part.kind].look_again:
            mark = "TOO LARGE " if part in broken else "look again"
            print(f"{mark} {part.kind} {part.name}: {part.size}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
