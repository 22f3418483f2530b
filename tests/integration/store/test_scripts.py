"""Every script says what it needs, uses nothing else, and runs on the servers that we name."""

import re
from pathlib import Path

import pytest
from tests.support.toolchain import REPOSITORY

from gpusession.api.session import Reason
from gpusession.store.client import RedisClient, _script

FOLDER = REPOSITORY / "operator" / "gpusession" / "store" / "scripts"
SCRIPTS = sorted(FOLDER.glob("*.lua"))
PARTS = sorted((FOLDER / "parts").glob("*.lua"))
named = pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])


@named
def test_head_says_keys_answer_and_why_atomic(path: Path) -> None:
    """One who reads the head can call the script."""
    head = re.match(r"(-- .*\n)+", path.read_text())

    assert head is not None
    for word in ("-- KEYS", "-- Returns", "-- Atomic: "):
        assert f"\n{word}" in f"\n{head[0]}"


@named
def test_keys_are_passed_not_written_down(path: Path) -> None:
    """Names of keys stand in keys.py alone."""
    assert "gs:" not in _script(path.stem)[1]


@named
def test_parts_are_all_put_in_place(path: Path) -> None:
    """No include line is left, and each part comes once."""
    included = re.findall(r"^-- include (\w+)$", path.read_text(), re.MULTILINE)

    assert "-- include" not in _script(path.stem)[1]
    assert len(included) == len(set(included))


@named
async def test_script_compiles(client: RedisClient, path: Path) -> None:
    """On both servers, whole."""
    digest, text = _script(path.stem)

    assert await client.call("SCRIPT", "LOAD", text) == digest.encode()


def test_no_part_is_left_over() -> None:
    """A part that no script needs goes."""
    texts = "".join(path.read_text() for path in SCRIPTS)

    assert [part.stem for part in PARTS if f"-- include {part.stem}\n" not in texts] == []


def test_reasons_in_scripts_are_those_of_the_api() -> None:
    """A word that nobody else knows would end a Session for no reason at all."""
    texts = "".join(path.read_text() for path in (*SCRIPTS, *PARTS))

    words = re.findall(r"'due', '(\w+)'|(\w+) = true", texts)
    reasons = {first or second for first, second in words if (first or second)[0].isupper()}
    assert reasons <= set(Reason)
    assert len(reasons) == 6
