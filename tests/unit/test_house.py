"""The house's own rules, where no linter knows them."""

import re
from pathlib import Path

import pytest
import yaml
from tests.support.toolchain import REPOSITORY

SOURCE_ROOT = REPOSITORY / "operator"
PACKAGE = SOURCE_ROOT / "gpusession"

WITHOUT_A_TEST_MODULE = {
    "__main__.py": "one line",
    "errors.py": "classes without behaviour",
    "metrics.py": "declarations; the processes' tests read them",
    "agent_client.py": "tests/e2e runs it against the real agent",
    "api/cluster.py": "data without behaviour",
    "api/release.py": "data without behaviour",
    "api/usage.py": "data without behaviour",
    "client/errors.py": "classes without behaviour",
    "controller/main.py": "wiring; every test in tests/e2e starts it",
    "controller/storage.py": "methods that do nothing",
    "agent/nvml_answers.py": "data without behaviour; test_nvml reads it",
    "agent/main.py": "wiring; every test in tests/e2e starts it",
    "gateway/main.py": "wiring; nearly every test in tests/integration/gateway starts it",
    "gateway/registry.py": "lists by uid; test_sockets, test_following and test_drain use them all",
    "rules/observation.py": "data without behaviour",
}


def _modules() -> list[str]:
    found = (str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
    return sorted(name for name in found if not name.endswith("__init__.py"))


def _test_modules() -> set[str]:
    return {
        str(path.relative_to(REPOSITORY / "tests" / level).parent / path.name[len("test_") :])
        for level in ("unit", "integration")
        for path in (REPOSITORY / "tests" / level).rglob("test_*.py")
    }


def test_the_source_root_holds_one_importable_entry() -> None:
    """A second one, or an __init__.py, would shadow Python's own modules."""
    entries = [p.name for p in SOURCE_ROOT.iterdir() if p.suffix == ".py" or p.is_dir()]

    assert [name for name in entries if name != "__pycache__"] == ["gpusession"]


@pytest.mark.parametrize("module", _modules())
def test_every_module_has_its_tests_or_a_reason(module: str) -> None:
    """A module is tested by test_<module> of the same folder, or says why not."""
    has_tests = module in _test_modules()

    assert has_tests != (module in WITHOUT_A_TEST_MODULE)


def test_no_excuse_outlives_its_module() -> None:
    """Every entry of the list of exceptions names a module that exists."""
    assert set(_modules()) >= set(WITHOUT_A_TEST_MODULE)


@pytest.mark.parametrize("lock", sorted((REPOSITORY / "requirements").glob("*.txt")), ids=str)
def test_locks_pin_hashes_and_name_no_address(lock: Path) -> None:
    """A lock works with whatever registry a site has, and with nothing but what was locked."""
    text = lock.read_text()

    pins = re.findall(r"^[a-z0-9].*==", text, flags=re.MULTILINE)
    assert pins
    assert "://" not in text
    assert text.count("--hash=sha256:") >= len(pins)


def test_every_sample_is_one_pod_and_its_session() -> None:
    """Samples read as documentation: a Session and the Pod of the same name."""
    for path in sorted((REPOSITORY / "manifests" / "samples").glob("[a-z]*.yaml")):
        kinds = [o["kind"] for o in yaml.safe_load_all(path.read_text())]

        assert kinds == ["Pod", "Session"], path.name
