"""What the image installs is what the tests ran on."""

import re

from tests.support.toolchain import REQUIREMENTS


def pins(name: str) -> dict[str, str]:
    """Read the versions of a lock."""
    text = (REQUIREMENTS / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def test_the_image_has_the_versions_that_were_tested() -> None:
    """requirements/runtime.txt is a part of requirements/dev.txt; `make lock` writes both."""
    shipped, tested = pins("runtime.txt"), pins("dev.txt")

    assert len(shipped) > 20
    assert shipped.items() <= tested.items()


def test_no_lock_names_an_index() -> None:
    """Hashes say what is wanted; where it comes from is the installing machine's choice."""
    assert "://" not in (REQUIREMENTS / "runtime.txt").read_text(encoding="utf-8")
