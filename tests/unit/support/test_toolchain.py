"""Names and versions: what decides whether something is built again."""

from pathlib import Path

import pytest
from tests.support.toolchain import digest, parse_version, published


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go1.26.8", (1, 26, 8)),
        ("go1.27rc1", (1, 27)),
        ("Redis server v=7.0.15 sha=00000000:0", (7, 0, 15)),
        ("devel", ()),
    ],
)
def test_version_is_the_first_dotted_number(text: str, version: tuple[int, ...]) -> None:
    """Versions compare as numbers, whatever words stand around them."""
    assert parse_version(text) == version


def test_digest_keeps_its_parts_apart() -> None:
    """Moving a byte from one part to the next names another content."""
    assert digest(b"ab", b"c") != digest(b"a", b"bc")


def test_published_folder_appears_whole(tmp_path: Path) -> None:
    """Nobody sees the target before the block has ended."""
    target = tmp_path / "cache" / "key"

    with published(target) as folder:
        assert folder is not None
        (folder / "program").touch()
        assert not target.exists()

    assert (target / "program").exists()


def test_failed_block_publishes_nothing(tmp_path: Path) -> None:
    """A build that fails leaves neither the target nor its scratch folder."""
    target = tmp_path / "cache" / "key"

    with pytest.raises(ZeroDivisionError), published(target):
        raise ZeroDivisionError

    assert [path.name for path in target.parent.iterdir()] == [".lock"]


def test_existing_target_is_not_made_again(tmp_path: Path) -> None:
    """The second of two processes gets None and has nothing to do."""
    target = tmp_path / "key"
    target.mkdir()

    with published(target) as folder:
        assert folder is None
