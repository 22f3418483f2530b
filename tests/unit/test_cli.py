"""Settings from environment and file, and what is refused."""

from pathlib import Path

import pytest

from gpusession.cli import load_settings, main
from gpusession.errors import Misconfigured
from gpusession.settings import AgentSettings


def _load(file: Path | None, environment: dict[str, str]) -> AgentSettings:
    settings = load_settings(AgentSettings, file, environment)
    assert isinstance(settings, AgentSettings)
    return settings


def _environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> dict[str, str]:
    environment = {f"GPUSESSION_{name}": value for name, value in values.items()}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


def test_the_environment_wins_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file holds what is common; one pod may differ."""
    file = tmp_path / "agent.yaml"
    file.write_text("node_name: from-file\nport: 1234\n")
    environment = _environment(monkeypatch, NODE_NAME="node-a")

    settings = _load(file, environment)

    assert (settings.node_name, settings.port) == ("node-a", 1234)


@pytest.mark.parametrize(
    ("name", "text"),
    [("GPUSESSION_NODENAME", ""), ("GPUSESSION_GATEWAY_SERVICE_HOST", "enableServiceLinks")],
    ids=["mistyped", "service link"],
)
def test_unknown_names_of_the_environment_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """A mistyped limit would silently be the default."""
    environment = _environment(monkeypatch, NODE_NAME="node-a") | {name: "x"}

    with pytest.raises(Misconfigured, match=f"{name}.*{text}"):
        _load(None, environment)


def test_unknown_names_of_the_file_are_refused(tmp_path: Path) -> None:
    """As in the environment."""
    file = tmp_path / "agent.yaml"
    file.write_text("node_name: a\nprot: 1\n")

    with pytest.raises(Misconfigured, match="prot"):
        _load(file, {})


def test_the_harness_own_variables_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only names with our prefix are ours."""
    environment = _environment(monkeypatch, NODE_NAME="node-a") | {"NVML_SIMULATOR_STATE": "/x"}

    assert _load(None, environment).node_name == "node-a"


@pytest.mark.parametrize("text", ["- a\n", "a: [\n"], ids=["a list", "no YAML"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str) -> None:
    """The sentence names the file."""
    file = tmp_path / "agent.yaml"
    file.write_text(text)

    with pytest.raises(Misconfigured, match=r"agent\.yaml"):
        _load(file, {})


def test_misconfiguration_is_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator of the cluster reads it in the pod's log."""
    monkeypatch.delenv("GPUSESSION_NODE_NAME", raising=False)

    with pytest.raises(SystemExit) as exit_:
        main(["agent"])
    said = capsys.readouterr().err

    assert exit_.value.code == 2
    assert said.count("\n") == 1
    assert "node_name" in said
