"""The CRD and the Python side of a Session agree, field by field."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
import yaml
from msgspec import inspect
from tests.support.toolchain import REPOSITORY

from gpusession.api import session as api
from gpusession.api.release import COMPLETING, Verdict

CRD = yaml.safe_load((REPOSITORY / "crds" / "session.yaml").read_text(encoding="utf-8"))["spec"]
BAD_SESSIONS = REPOSITORY / "tests" / "data" / "bad_sessions.yaml"
SCHEMA = CRD["versions"][0]["schema"]["openAPIV3Schema"]
ROOTS = {"spec": api.SessionSpec, "status": api.SessionStatus}

TYPES = {
    "string": (inspect.StrType, inspect.EnumType),
    "integer": inspect.IntType,
    "number": inspect.FloatType,
    "array": inspect.VarTupleType,
    "object": inspect.StructType,
    "boolean": inspect.BoolType,
}
EMPTY = {
    "string": (None, ""),
    "integer": (None, 0),
    "array": ([],),
    "object": (None,),
    "boolean": (False,),
}
"""What Python gives for a field that the CRD neither requires nor defaults."""

NARROWER = {"spec.desiredPhase": {"Active", "Destroyed"}}
"""Where the CRD takes a part of the Python enum only."""

PLAIN = {"status.release.verdict": set(Verdict)}
"""Where Python reads a plain string, since the enum lives in a module that imports this one."""

PADDED = {"status.conditions[].message", "status.conditions[].lastTransitionTime"}
"""Required by metav1.Condition; Python fills them in last."""

FIXED_FOREVER = {"podRefs", "user"}
ALWAYS_FREE = {"desiredPhase", "ttlSecondsAfterDestroyed"}


class Pair(NamedTuple):
    """One field as the CRD and as Python see it."""

    path: str
    schema: dict[str, Any]
    required: bool
    field: inspect.Field
    type: inspect.Type


def bare(kind: inspect.Type) -> inspect.Type:
    """Give T for `T | None`."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    (only,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
    return only


def structs(
    path: str, schema: dict[str, Any], kind: inspect.Type
) -> Iterator[tuple[str, dict[str, Any], inspect.StructType]]:
    """Walk through every object of the schema together with its Python type."""
    if isinstance(kind, inspect.VarTupleType):
        yield from structs(f"{path}[]", schema["items"], bare(kind.item_type))
    if not isinstance(kind, inspect.StructType):
        return
    yield path, schema, kind
    for field in kind.fields:
        if below := schema["properties"].get(field.encode_name):
            yield from structs(f"{path}.{field.encode_name}", below, bare(field.type))


STRUCTS = [
    each
    for root, python in ROOTS.items()
    for each in structs(root, SCHEMA["properties"][root], inspect.type_info(python))
]
PAIRS = [
    Pair(
        f"{path}.{field.encode_name}",
        schema["properties"][field.encode_name],
        field.encode_name in schema.get("required", ()),
        field,
        bare(field.type),
    )
    for path, schema, kind in STRUCTS
    for field in kind.fields
    if field.encode_name in schema["properties"]
]
each_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.path)


def nodes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Walk through every node of a schema."""
    yield schema
    for below in [*schema.get("properties", {}).values(), *filter(None, [schema.get("items")])]:
        yield from nodes(below)


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct[0])
def test_crd_and_python_have_the_same_fields(
    struct: tuple[str, dict[str, Any], inspect.StructType],
) -> None:
    """Every property of the CRD has a Python field of its name, and the other way round."""
    _, schema, kind = struct

    assert {field.encode_name for field in kind.fields} == set(schema["properties"])


@each_pair
def test_field_has_the_same_type(pair: Pair) -> None:
    """A number is a number on both sides, a list a list."""
    assert isinstance(pair.type, TYPES[pair.schema["type"]])


@each_pair
def test_field_has_the_same_default(pair: Pair) -> None:
    """What the apiserver fills in is what Python assumes; a nullable object is None there."""
    default = msgspec.to_builtins(pair.field.default) if not pair.field.required else "required"
    if isinstance(default, tuple):
        default = list(default)

    if pair.required:
        assert default == "required" or pair.path in PADDED
    elif pair.schema.get("nullable"):
        assert (default, pair.schema["default"]) == (None, {})
    elif "default" in pair.schema:
        assert default == pair.schema["default"]
    else:
        assert default in EMPTY[pair.schema["type"]]


@each_pair
def test_field_takes_the_same_words(pair: Pair) -> None:
    """An enum lists the same words on both sides."""
    words = pair.schema.get("enum")

    if isinstance(pair.type, inspect.EnumType):
        assert words is not None
        assert set(words) == NARROWER.get(pair.path, set(pair.type.cls))
    elif words:
        assert set(words) == PLAIN.get(pair.path, set(words))


@each_pair
def test_field_is_described(pair: Pair) -> None:
    """Kubectl explain has a sentence for every field."""
    assert pair.schema["description"].endswith(".")


def test_names_are_the_constants() -> None:
    """Group, version, plural and kind are those that the operator asks for."""
    names = (CRD["group"], CRD["versions"][0]["name"], CRD["names"]["plural"], CRD["names"]["kind"])

    assert names == (api.GROUP, api.VERSION, api.PLURAL, api.KIND)


def test_every_value_is_bounded() -> None:
    """No list, text or number may grow without end: the apiserver prices its rules by that."""
    bounds = {
        "array": {"maxItems"},
        "string": {"maxLength", "enum", "format"},
        "integer": {"minimum"},
        "number": {"minimum"},
        "object": {"type"},
        "boolean": {"type"},
    }

    every = [node for root in ROOTS for node in nodes(SCHEMA["properties"][root])]
    assert [node for node in every if not bounds[node["type"]] & set(node)] == []


def test_an_ending_session_holds_every_setting() -> None:
    """A new field cannot be forgotten in the rule that freezes the spec of an ending Session."""
    (rule,) = (
        each["rule"]
        for each in SCHEMA["x-kubernetes-validations"]
        if each["message"].startswith("once the Session is PendingDestroy")
    )

    settings = set(SCHEMA["properties"]["spec"]["properties"]) - FIXED_FOREVER - ALWAYS_FREE
    frozen = {name for name in settings if f"self.spec.{name} == oldSelf.spec.{name}" in rule}
    assert frozen == settings


def test_destroyed_takes_the_completing_verdicts() -> None:
    """The never-lie rule lists exactly the verdicts that let a finalizer go."""
    (rule,) = (
        each["rule"]
        for each in SCHEMA["properties"]["status"]["x-kubernetes-validations"]
        if "verdict in" in each["rule"]
    )

    _, _, listed = rule.partition("verdict in")
    assert set(yaml.safe_load(listed.partition(")")[0])) == COMPLETING


def test_every_condition_is_explained() -> None:
    """The description of conditions names each type that the operator writes."""
    described = SCHEMA["properties"]["status"]["properties"]["conditions"]["description"]

    assert [each for each in api.ConditionType if each not in described] == []


def test_every_sentence_of_the_crd_is_provoked() -> None:
    """Each rule has a bad Session that meets it, save the one that needs a CRD with hooks."""
    said = [case["says"] for case in yaml.safe_load(BAD_SESSIONS.read_text("utf-8"))["cases"]]
    rules = [each for node in nodes(SCHEMA) for each in node.get("x-kubernetes-validations", ())]

    openings = {" ".join(rule["message"].split()[:5]) for rule in rules}

    silent = {opening for opening in openings if not any(opening in says for says in said)}
    assert silent == {"release.hook cannot change once the"}
