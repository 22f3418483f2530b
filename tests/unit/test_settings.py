"""Every knob is explained, bounded and refused when mistyped; secrets do not show."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gpusession.settings import AgentSettings, ControllerSettings, ProcessSettings

KINDS = (ControllerSettings, AgentSettings)
NEEDED: dict[type[ProcessSettings], dict[str, Any]] = {
    ControllerSettings: {},
    AgentSettings: {"node_name": "node-a"},
}
FIELDS = [(kind, name) for kind in KINDS for name in kind.model_fields]


def make(kind: type[ProcessSettings], **values: Any) -> ProcessSettings:
    """Give settings with what is needed and these values."""
    return kind(**NEEDED[kind] | values)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, name in FIELDS:
        monkeypatch.delenv(f"GPUSESSION_{name.upper()}", raising=False)


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda v: getattr(v, "__name__", v))
def test_every_field_says_what_it_is(kind: type[ProcessSettings], name: str) -> None:
    """The sentence under a field becomes its description, and ends as a sentence does."""
    description = kind.model_fields[name].description

    assert description
    assert description.rstrip().endswith(".")


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_valid(kind: type[ProcessSettings]) -> None:
    """Nothing needs setting but what cannot be known beforehand."""
    settings = make(kind)

    assert settings.kube_timeout == timedelta(seconds=10)
    assert not any(value is ... for value in settings.model_dump().values())


def test_agent_must_know_its_node() -> None:
    """An agent that guessed its node would answer for another one."""
    with pytest.raises(ValidationError, match="node_name"):
        AgentSettings()


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_field_is_refused(kind: type[ProcessSettings]) -> None:
    """A mistyped limit is an error, not the default."""
    with pytest.raises(ValidationError, match="retry_bsae"):
        make(kind, retry_bsae=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "values",
    [{"metrics_port": 0}, {"metrics_port": 65536}, {"listen_host": "localhost"}],
    ids=lambda values: "-".join(map(str, *values.items())),
)
def test_impossible_value_is_refused(kind: type[ProcessSettings], values: dict[str, Any]) -> None:
    """Ports and addresses are checked before anything starts."""
    with pytest.raises(ValidationError):
        make(kind, **values)


@pytest.mark.parametrize("count", [0, -1, 1025])
@pytest.mark.parametrize("field", ["workers", "api_connections"])
def test_counts_are_bounded(field: str, count: int) -> None:
    """No worker is a standstill, and thousands of connections are an attack."""
    with pytest.raises(ValidationError):
        make(ControllerSettings, **{field: count})


@pytest.mark.parametrize("show", [str, repr, lambda s: s.model_dump_json()])
def test_secrets_do_not_print(show: Any) -> None:
    """Settings may be logged: a Redis URL holds a password."""
    url = "redis://ann:hunter2@redis/0"
    settings = make(ControllerSettings, redis_url=url, state_redis_url=url)

    assert "hunter2" not in show(settings)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_do_not_change(kind: type[ProcessSettings]) -> None:
    """What a process started with is what it runs with."""
    with pytest.raises(ValidationError, match="frozen"):
        make(kind).log_level = "DEBUG"


def test_other_roots_are_off_by_default() -> None:
    """Only a demo may look at other processes than the node's own."""
    settings = AgentSettings(node_name="node-a")

    assert (settings.demo_mode, settings.proc_root) == (False, Path("/proc"))
