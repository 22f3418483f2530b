"""A real kube-apiserver keeps the Session's contract: what it refuses, fills in and explains."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.control_plane import ControlPlane
from tests.support.session_api import CRD, create, remove_namespace, session

DATA = yaml.safe_load((Path(__file__).parents[2] / "data" / "bad_sessions.yaml").read_text("utf-8"))
FREED, RELEASED, IN_GRACE, RELEASING = DATA["evidence"]
NAMESPACE = "bad"


@pytest.fixture(scope="module")
def plane(session_api: ControlPlane) -> Iterator[ControlPlane]:
    """Give the cluster with a namespace for this module."""
    session_api.kubectl("create", "namespace", NAMESPACE)
    yield session_api
    remove_namespace(session_api, NAMESPACE)


def overlaid(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Lay one tree over another; unlike a merge patch it keeps null."""
    result = dict(base)
    for key, value in change.items():
        below = result.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        result[key] = overlaid(below, value) if both else value
    return result


def patch(
    plane: ControlPlane, name: str, change: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Merge a change into the status if it has one, else into the Session."""
    options = ["--subresource=status"] if "status" in change else []
    return plane.kubectl(
        *("patch", "session", name, f"--namespace={NAMESPACE}", *options),
        *("--type=merge", f"--patch={json.dumps(change)}"),
        check=False,
    )


def stored(plane: ControlPlane, name: str) -> dict[str, Any]:
    """Read a Session back."""
    got = plane.kubectl("get", "session", name, f"--namespace={NAMESPACE}", "-o", "json")
    return json.loads(got.stdout)


@pytest.mark.parametrize("case", DATA["cases"], ids=lambda case: case["name"])
def test_bad_session_is_refused_with_a_sentence(plane: ControlPlane, case: dict[str, Any]) -> None:
    """Each bad Session or change is refused, and the sentence says what to do."""
    named = overlaid(DATA["base"], {"metadata": {"name": case["name"], "namespace": NAMESPACE}})
    manifest = overlaid(named, case.get("create", {}))

    answers = [create(plane, manifest, check=False)]
    answers += [patch(plane, case["name"], change) for change in case.get("then", ())]

    assert [answer.stderr for answer in answers[:-1] if answer.returncode] == []
    assert answers[-1].returncode
    assert case["says"] in answers[-1].stderr


def test_absent_fields_get_their_defaults(plane: ControlPlane) -> None:
    """A Session with nothing but a Pod reads back with every default spelled out."""
    create(plane, session("defaults", NAMESPACE))

    assert stored(plane, "defaults")["spec"] == {
        "podRefs": [{"name": "defaults", "onRelease": "DeletePod"}],
        "heartbeat": {"periodSeconds": 30, "failureThreshold": 3, "initialDelaySeconds": 60},
        "idle": {"timeoutSeconds": 1800, "signals": ["Client", "GPU"]},
        "maxLifetimeSeconds": 43200,
        "disconnectGraceMilliseconds": 90000,
        "destroyGraceSeconds": 0,
        "terminationGracePeriodSeconds": 0,
        "priority": 0,
        "desiredPhase": "Active",
    }


def test_a_part_of_the_heartbeat_gets_the_other_defaults(plane: ControlPlane) -> None:
    """A heartbeat with its period alone keeps the period and gets the rest."""
    create(plane, session("part", NAMESPACE, heartbeat={"periodSeconds": 5}))

    heartbeat = stored(plane, "part")["spec"]["heartbeat"]
    assert heartbeat == {"periodSeconds": 5, "failureThreshold": 3, "initialDelaySeconds": 60}


@pytest.mark.parametrize(
    "command", [("create",), ("apply", "--server-side")], ids=["create", "server-side-apply"]
)
def test_null_heartbeat_and_idle_stay_null(plane: ControlPlane, command: tuple[str, ...]) -> None:
    """An explicit null is kept where the client sends it: nothing is expected then."""
    name = f"null-by-{command[-1].strip('-')}"
    manifest = session(name, NAMESPACE, heartbeat=None, idle=None)

    plane.kubectl(*command, "-f", "-", input=yaml.safe_dump(manifest))

    spec = stored(plane, name)["spec"]
    assert (spec["heartbeat"], spec["idle"]) == (None, None)


def test_zero_says_what_plain_apply_drops_as_null(plane: ControlPlane) -> None:
    """Zero survives kubectl apply, which drops the null of heartbeat before it sends."""
    manifest = session(
        "zero", NAMESPACE, heartbeat={"periodSeconds": 0}, idle={"timeoutSeconds": 0}
    )
    nulls = session("lost", NAMESPACE, heartbeat=None)

    plane.kubectl("apply", "-f", "-", input=yaml.safe_dump_all([manifest, nulls]))

    spec = stored(plane, "zero")["spec"]
    assert (spec["heartbeat"]["periodSeconds"], spec["idle"]["timeoutSeconds"]) == (0, 0)
    assert stored(plane, "lost")["spec"]["heartbeat"] is not None


@pytest.mark.parametrize("phase", [None, "Pending", "Active"])
def test_settings_change_until_the_end_begins(plane: ControlPlane, phase: str | None) -> None:
    """What is not fixed may change while nothing has ended, also to null and back."""
    name = f"changes-{phase}".lower()
    create(plane, session(name, NAMESPACE, heartbeat=None))
    if phase:
        patch(plane, name, {"status": {"phase": phase}})
    change = {
        "heartbeat": {"periodSeconds": 9},
        "maxLifetimeSeconds": 60,
        "priority": 5,
        "state": {"keys": [f"{NAMESPACE}:{name}"]},
    }

    answer = patch(plane, name, {"spec": change})

    assert answer.stderr == ""


def test_ending_session_may_be_closed_and_given_a_ttl(plane: ControlPlane) -> None:
    """Null settings in place, an ending Session still takes desiredPhase and the ttl."""
    create(plane, session("ending", NAMESPACE, heartbeat=None, idle=None))
    patch(plane, "ending", {"status": {"phase": "PendingDestroy"}})

    answer = patch(
        plane, "ending", {"spec": {"desiredPhase": "Destroyed", "ttlSecondsAfterDestroyed": 5}}
    )

    assert answer.stderr == ""


@pytest.mark.parametrize(
    "path",
    [
        ("Pending", "Active", "PendingDestroy", "Destroyed"),
        ("Active", "Active", "PendingDestroy", "Active", "PendingDestroy", "Destroyed"),
        ("Pending", "PendingDestroy", "PendingDestroy", "Destroyed", "Destroyed"),
        ("PendingDestroy", "Destroyed"),
        ("Pending", "Destroyed"),
        ("Destroyed",),
    ],
    ids="-".join,
)
def test_phase_moves_along_the_table(plane: ControlPlane, path: tuple[str, ...]) -> None:
    """Every way through the table is open to a controller that brings its evidence."""
    name = f"via-{len(path)}-{path[0]}".lower()
    create(plane, session(name, NAMESPACE))

    brings = {
        "Destroyed": {"release": FREED, "conditions": RELEASED},
        "PendingDestroy": {"conditions": IN_GRACE},
        "Active": {"conditions": None},
    }
    answers = [
        patch(
            plane, name, {"status": {"phase": phase, "leaderEpoch": epoch} | brings.get(phase, {})}
        )
        for epoch, phase in enumerate(path)
    ]

    assert [answer.stderr for answer in answers if answer.returncode] == []


def test_a_grace_that_is_over_begins_a_release(plane: ControlPlane) -> None:
    """From DestroyGrace the reason moves on within PendingDestroy, and it may be repeated."""
    create(plane, session("committed", NAMESPACE))
    stages = [{"phase": "PendingDestroy", "conditions": IN_GRACE}] * 2
    stages.append({"conditions": RELEASING})

    answers = [patch(plane, "committed", {"status": stage}) for stage in stages]

    assert [answer.stderr for answer in answers if answer.returncode] == []


@pytest.mark.parametrize(
    "verdict", ["Freed", "NothingHeld", "ReferenceDropped", "NodeGone", "NotBound", "Overridden"]
)
def test_completing_verdict_ends_a_session(plane: ControlPlane, verdict: str) -> None:
    """Destroyed rests on any completing verdict, with both conditions True."""
    name = f"ends-{verdict}".lower()
    create(plane, session(name, NAMESPACE))

    answer = patch(
        plane,
        name,
        {
            "status": {
                "phase": "Destroyed",
                "release": {"verdict": verdict},
                "conditions": RELEASED,
            }
        },
    )

    assert answer.stderr == ""


def test_pod_and_node_may_change_before_the_bind(plane: ControlPlane) -> None:
    """A Pending Session may report another Pod than the one that it waited for first."""
    create(plane, session("waits", NAMESPACE))
    patch(plane, "waits", {"status": {"phase": "Pending", "podUID": "a", "nodeName": "node-a"}})

    answer = patch(
        plane, "waits", {"status": {"phase": "Active", "podUID": "b", "nodeName": "node-b"}}
    )

    assert answer.stderr == ""


def test_hook_is_fixed_once_bound(plane: ControlPlane) -> None:
    """Where hooks are allowed, a bound Session keeps its own.

    Seen on a copy of the CRD without the rule that refuses hooks in this version.
    """
    plane.kubectl("apply", "-f", "-", input=yaml.safe_dump(_crd_with_hooks()))
    plane.kubectl("wait", "--for=condition=Established", "crd/hooked.gpusession.dev")
    name = ("hooked", "bound", f"--namespace={NAMESPACE}", "--type=merge")
    manifest = session("bound", NAMESPACE, release={"hook": {"preset": "vllm"}})
    plane.kubectl("create", "-f", "-", input=yaml.safe_dump(manifest | {"kind": "Hooked"}))
    plane.kubectl("patch", *name, "--subresource=status", '-p={"status":{"phase":"Active"}}')

    answers = [
        plane.kubectl("patch", *name, f'-p={{"spec":{{"release":{change}}}}}', check=False)
        for change in ('{"hook":{"preset":"triton"}}', '{"hook":null}', "null")
    ]

    plane.kubectl("delete", "crd", "hooked.gpusession.dev")
    sentence = "release.hook cannot change once the Session is bound to its Pod"
    assert [sentence in answer.stderr for answer in answers] == [True] * 3


def _crd_with_hooks() -> dict[str, Any]:
    crd = yaml.safe_load(CRD.read_text("utf-8"))
    crd["metadata"]["name"] = "hooked.gpusession.dev"
    crd["spec"]["names"] = {"kind": "Hooked", "listKind": "HookedList", "plural": "hooked"}
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["release"]["x-kubernetes-validations"]
    return crd


def test_explain_tells_what_a_field_does(plane: ControlPlane) -> None:
    """Kubectl explain shows the unit and the reason of a default, and who enforces it."""
    text = plane.kubectl("explain", "session.spec.disconnectGraceMilliseconds").stdout

    words = " ".join(text.split())
    assert "Milliseconds from the seen disconnect of the last client" in words
    assert "Only an end that a living gateway saw is a disconnect" in words


def test_get_shows_phase_reason_node_and_gpu(plane: ControlPlane) -> None:
    """The table tells the state of a Session at a glance; -o wide adds verdict and deadline."""
    create(plane, session("shown", NAMESPACE))
    status = {"phase": "Active", "reason": "Bound", "nodeName": "node-a", "gpuUUIDs": ["GPU-1"]}
    patch(plane, "shown", {"status": status})

    lines = plane.kubectl(
        "get", "gsess", "shown", "-o", "wide", "-n", NAMESPACE
    ).stdout.splitlines()

    columns = ["NAME", "PHASE", "REASON", "NODE", "GPU", "FREED", "DESTROY-AFTER", "AGE"]
    assert lines[0].split() == columns
    assert lines[1].split()[:5] == ["shown", "Active", "Bound", "node-a", '["GPU-1"]']


def test_sessions_are_selected_by_phase_and_node(plane: ControlPlane) -> None:
    """Field selectors find the Sessions of a node without reading all."""
    create(plane, session("selected", NAMESPACE))
    patch(plane, "selected", {"status": {"phase": "Active", "nodeName": "node-z"}})

    selector = "--field-selector=status.phase=Active,status.nodeName=node-z"
    found = plane.kubectl("get", "sessions", "-n", NAMESPACE, selector, "-o", "name").stdout

    assert found.split() == ["session.gpusession.dev/selected"]


def test_samples_are_accepted(plane: ControlPlane) -> None:
    """The samples, with the policies in force, apply to a new cluster in one go."""
    samples = CRD.parents[1] / "manifests" / "samples"

    answer = plane.kubectl("apply", "-f", samples, check=False)
    remove_namespace(plane, "gpu-demo")

    assert answer.stderr == ""
    assert answer.stdout.count("session.gpusession.dev/") == 7
