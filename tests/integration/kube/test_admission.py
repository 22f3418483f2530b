"""The admission policies, as a real kube-apiserver enforces them."""

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from tests.support.control_plane import ControlPlane
from tests.support.processes import wait_until
from tests.support.session_api import (
    BASE,
    BIND_INTENT,
    CONTROLLER,
    FINALIZER,
    HUMAN,
    create,
    create_namespace,
    remove_namespace,
    session,
)

Answer = subprocess.CompletedProcess[str]

NAMESPACE = "admission"
OVERRIDE = "gpusession.dev/override-release-by"
EXPIRY_OVERRIDE = "gpusession.dev/override-expiry-by"
SIGNATURES = pytest.mark.parametrize(
    "annotation", [OVERRIDE, EXPIRY_OVERRIDE], ids=["release", "expiry"]
)
STATUS = "--subresource=status"
DESTROYED = {
    "phase": "Destroyed",
    "release": {"verdict": "NotBound"},
    "conditions": [
        {
            "type": each,
            "status": "True",
            "reason": "NotBound",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for each in ("GPUReleased", "StateCleared")
    ],
}


@pytest.fixture(scope="module")
def plane(session_api: ControlPlane) -> Iterator[ControlPlane]:
    """Give the cluster with a namespace for this module."""
    create_namespace(session_api, NAMESPACE)
    yield session_api
    remove_namespace(session_api, NAMESPACE)


def patch(plane: ControlPlane, name: str, change: dict[str, Any], *options: str) -> Answer:
    """Merge a change into a Session."""
    return plane.kubectl(
        *("patch", "session", name, f"--namespace={NAMESPACE}", *options),
        *("--type=merge", f"--patch={json.dumps(change)}"),
        check=False,
    )


def annotate(
    plane: ControlPlane, name: str, annotation: tuple[str, str | None], *, user: str | None
) -> Answer:
    """Set or remove one annotation as somebody, None being an admin in system:masters."""
    change = {"metadata": {"annotations": dict([annotation])}}
    return patch(plane, name, change, *([f"--as={user}"] if user else []))


def eventually(condition: Callable[[], object]) -> None:
    """Wait for a change of a policy to take effect."""
    wait_until(lambda: bool(condition()), timeout=15, what="the policy's change", period=0.1)


def make_session(plane: ControlPlane, name: str, **metadata: Any) -> None:
    """Create a Session as the controller may, with annotations and finalizers."""
    manifest = session(name, NAMESPACE)
    manifest["metadata"] |= metadata
    plane.kubectl("create", "-f", "-", input=yaml.safe_dump(manifest))


@pytest.mark.parametrize("field", ["keys", "indexKeys", "keyPrefixes"])
@pytest.mark.parametrize(
    "key",
    ["admission:ab", "admission:ab:x", "admission:", "admission", "other:a:x", "a:x", "*"],
)
def test_foreign_redis_key_is_refused(plane: ControlPlane, field: str, key: str) -> None:
    """A key outside <namespace>:<name> is refused and named; `a` does not own `ab`."""
    manifest = session("a", NAMESPACE, state={field: ["admission:a:good", key]})

    answer = create(plane, manifest, "--dry-run=server", check=False)

    sentence = (
        f'spec.state.{field} must each be "admission:a" or begin with "admission:a:", '
        f'but "{key}" does not'
    )
    assert sentence in answer.stderr


@pytest.mark.parametrize("field", ["keys", "indexKeys", "keyPrefixes"])
def test_own_redis_keys_are_accepted(plane: ControlPlane, field: str) -> None:
    """The Session's own name and whatever goes on with a colon are its keys."""
    manifest = session(
        "a", NAMESPACE, state={field: ["admission:a", "admission:a:", "admission:a:x"]}
    )

    answer = create(plane, manifest, "--dry-run=server", check=False)

    assert answer.stderr == ""


def test_generated_name_counts_for_keys(plane: ControlPlane) -> None:
    """With generateName the final name is compared, so a guessed prefix is refused."""
    manifest = session("a", NAMESPACE, state={"keys": ["admission:a-"]})
    manifest["metadata"] = {"generateName": "a-", "namespace": NAMESPACE}

    answer = create(plane, manifest, "--dry-run=server", check=False)

    assert 'spec.state.keys must each be "admission:a-' in answer.stderr


def test_foreign_redis_key_cannot_be_added_later(plane: ControlPlane) -> None:
    """An update is held to the same keys."""
    create(plane, session("later", NAMESPACE))

    answer = patch(plane, "later", {"spec": {"state": {"keys": ["admission:late"]}}})

    assert 'begin with "admission:later:", but "admission:late" does not' in answer.stderr


@pytest.mark.parametrize("user", [HUMAN, None], ids=["human", "masters"])
@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        ("set", None, "node/uid"),
        ("empty", None, ""),
        ("alter", "node/uid", "other/uid"),
        ("remove", "node/uid", None),
    ],
)
def test_only_the_controller_touches_the_bind_intent(
    plane: ControlPlane, change: str, *, before: str | None, after: str | None, user: str | None
) -> None:
    """Nobody else sets, changes or removes the note on which verdict NotBound rests."""
    name = f"intent-{change}-{user}".lower()
    make_session(plane, name)
    if before:
        annotate(plane, name, (BIND_INTENT, before), user=CONTROLLER)

    answer = annotate(plane, name, (BIND_INTENT, after), user=user)

    assert "only the controller writes annotation gpusession.dev/bind-intent" in answer.stderr


def test_session_from_before_the_policy_can_end(plane: ControlPlane) -> None:
    """A foreign key that is stored already does not stop the controller's patches."""
    foreign = session("elder", NAMESPACE, state={"keys": ["foreign"]})
    plane.kubectl("delete", "validatingadmissionpolicybinding", "session-state-keys.gpusession.dev")
    eventually(lambda: not create(plane, foreign, check=False).returncode)
    plane.kubectl("apply", "-f", BASE / "20-admission.yaml")
    foreign["metadata"]["name"] = "younger"
    eventually(lambda: create(plane, foreign, "--dry-run=server", check=False).returncode)

    answer = annotate(plane, "elder", (BIND_INTENT, "node/uid"), user=CONTROLLER)

    assert answer.stderr == ""


def test_session_is_not_born_with_a_bind_intent(plane: ControlPlane) -> None:
    """A new Session cannot claim to be bound, not even an admin's."""
    manifest = session("born-bound", NAMESPACE)
    manifest["metadata"]["annotations"] = {BIND_INTENT: "node/uid"}

    answer = create(plane, manifest, check=False)

    assert "leave it out of a new Session" in answer.stderr


def test_controller_writes_the_bind_intent_with_the_finalizer(plane: ControlPlane) -> None:
    """One patch of the controller sets finalizer and intent, a later one changes the intent."""
    make_session(plane, "bound")
    first = {"finalizers": [FINALIZER], "annotations": {BIND_INTENT: "node/uid"}}

    answers = [
        patch(plane, "bound", {"metadata": first}, f"--as={CONTROLLER}"),
        annotate(plane, "bound", (BIND_INTENT, "other/uid"), user=CONTROLLER),
    ]

    assert [answer.stderr for answer in answers] == ["", ""]


def test_other_annotations_are_free(plane: ControlPlane) -> None:
    """A human changes annotations beside the bind intent as they like."""
    make_session(plane, "noted")
    annotate(plane, "noted", (BIND_INTENT, "node/uid"), user=CONTROLLER)

    answer = annotate(plane, "noted", ("example.com/note", "mine"), user=HUMAN)

    assert answer.stderr == ""


@SIGNATURES
def test_human_signs_an_override_with_their_own_name(plane: ControlPlane, annotation: str) -> None:
    """The signature is the signer's own, and may be taken back."""
    name = f"signed-{annotation.split('-')[1]}"
    make_session(plane, name)
    patch(plane, name, {"status": {"phase": "Active"}}, STATUS)

    answers = [annotate(plane, name, (annotation, value), user=HUMAN) for value in (HUMAN, None)]

    assert [answer.stderr for answer in answers] == ["", ""]


@SIGNATURES
def test_signing_for_somebody_else_is_refused(plane: ControlPlane, annotation: str) -> None:
    """A foreign name is refused, and the sentence gives the right one."""
    name = f"forged-{annotation.split('-')[1]}"
    make_session(plane, name)

    answer = annotate(plane, name, (annotation, "grace"), user=HUMAN)

    assert f'{annotation} must be your own user name; write "{HUMAN}"' in answer.stderr


@pytest.mark.parametrize(
    ("annotation", "sentence"),
    [
        (OVERRIDE, "sign it when a release has failed, not on a new Session"),
        (EXPIRY_OVERRIDE, "sign it when condition ExpiryPaused holds a Session up, not on a new"),
    ],
    ids=["release", "expiry"],
)
def test_new_session_cannot_be_born_signed(
    plane: ControlPlane, annotation: str, sentence: str
) -> None:
    """Nobody gives up in advance on evidence that may well come."""
    manifest = session("born-signed", NAMESPACE)
    manifest["metadata"]["annotations"] = {annotation: HUMAN}

    answer = create(plane, manifest, f"--as={HUMAN}", check=False)

    assert sentence in answer.stderr


@SIGNATURES
def test_service_account_cannot_sign_an_override(plane: ControlPlane, annotation: str) -> None:
    """No program overrules what is proven, the controller least of all."""
    name = f"robot-{annotation.split('-')[1]}"
    make_session(plane, name)

    answer = annotate(plane, name, (annotation, CONTROLLER), user=CONTROLLER)

    assert f'only a human may sign annotation {annotation}, and "{CONTROLLER}"' in answer.stderr


@SIGNATURES
def test_signed_session_is_still_writable_by_others(plane: ControlPlane, annotation: str) -> None:
    """A signature that stays as it is stands in nobody's way, so the controller can finish."""
    name = f"finish-{annotation.split('-')[1]}"
    make_session(plane, name, finalizers=[FINALIZER])
    annotate(plane, name, (annotation, HUMAN), user=HUMAN)

    answer = patch(
        plane,
        name,
        {"metadata": {"annotations": {BIND_INTENT: "node/uid"}, "finalizers": []}},
        f"--as={CONTROLLER}",
    )

    assert answer.stderr == ""


def test_whoever_may_patch_a_session_may_revoke_it(plane: ControlPlane) -> None:
    """It gives nobody anything but the end of that Session, programs included."""
    make_session(plane, "revoked")

    answer = annotate(plane, "revoked", ("gpusession.dev/revoke", "now"), user=CONTROLLER)

    assert answer.stderr == ""


def test_human_cannot_remove_the_finalizer(plane: ControlPlane) -> None:
    """Before Destroyed the finalizer stays, and the sentence names the override."""
    make_session(plane, "held", finalizers=[FINALIZER])

    answer = patch(plane, "held", {"metadata": {"finalizers": []}}, f"--as={HUMAN}")

    assert "to give up on the evidence a human sets annotation" in answer.stderr
    assert OVERRIDE in answer.stderr


def test_other_finalizers_are_free(plane: ControlPlane) -> None:
    """Somebody else's finalizer beside ours comes and goes."""
    make_session(plane, "guarded", finalizers=[FINALIZER, "example.com/own"])

    answer = patch(plane, "guarded", {"metadata": {"finalizers": [FINALIZER]}}, f"--as={HUMAN}")

    assert answer.stderr == ""


def test_anyone_removes_the_finalizer_of_a_destroyed_session(plane: ControlPlane) -> None:
    """Once the evidence is written the finalizer guards nothing."""
    make_session(plane, "over", finalizers=[FINALIZER])
    patch(plane, "over", {"status": DESTROYED}, STATUS)

    answer = patch(plane, "over", {"metadata": {"finalizers": []}}, f"--as={HUMAN}")

    assert answer.stderr == ""


def test_system_masters_removes_any_finalizer(plane: ControlPlane) -> None:
    """Whoever owns the cluster is never stuck."""
    make_session(plane, "masters", finalizers=[FINALIZER])

    answer = patch(plane, "masters", {"metadata": {"finalizers": []}})

    assert answer.stderr == ""


def test_status_write_leaves_metadata_alone(plane: ControlPlane) -> None:
    """The status subresource is no back door to finalizers and annotations."""
    make_session(plane, "back-door", finalizers=[FINALIZER])
    change = {
        "metadata": {"finalizers": [], "annotations": {BIND_INTENT: "node/uid"}},
        "status": {"phase": "Pending"},
    }

    patch(plane, "back-door", change, STATUS, f"--as={HUMAN}")

    got = plane.kubectl("get", "session", "back-door", "-n", NAMESPACE, "-o", "json").stdout
    metadata = json.loads(got)["metadata"]
    assert (metadata["finalizers"], metadata.get("annotations")) == ([FINALIZER], None)


def test_terminating_namespace_lets_the_controller_finish(plane: ControlPlane) -> None:
    """Policies pass what the end of a Session needs while its namespace is being deleted."""
    create_namespace(plane, "ends")
    manifest = session("last", "ends", state={"keys": ["ends:last"]})
    manifest["metadata"]["finalizers"] = [FINALIZER]
    create(plane, manifest)
    plane.kubectl("delete", "namespace", "ends", "--wait=false")
    patching = ("patch", "session", "last", "--namespace=ends", "--type=merge")

    plane.kubectl(*patching, STATUS, f"--patch={json.dumps({'status': DESTROYED})}")
    plane.kubectl(*patching, '--patch={"metadata":{"finalizers":null}}', f"--as={CONTROLLER}")

    plane.kubectl("wait", "--for=delete", "session/last", "-n", "ends", "--timeout=15s")
