"""Our writes with the controller's own rights, as a real kube-apiserver takes or refuses them."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec
import pytest
from tests.support.builders import NOW, make_status
from tests.support.cluster import Cluster
from tests.support.control_plane import ControlPlane
from tests.support.processes import wait_until
from tests.support.session_api import create_namespace, remove_namespace

from gpusession.api.session import FINALIZER, Metadata, Phase, Reason, Session, SessionStatus
from gpusession.errors import Refused, Stale
from gpusession.kube.client import KubeClient
from gpusession.kube.writer import KubeWriter
from gpusession.rules.outcome import pending_destroy

FOREIGN = ("a.example/one", "b.example/two")
GRACE = timedelta(seconds=1)
AT = "2026-01-02T03:04:05Z"


@pytest.fixture
def writer(client: KubeClient) -> KubeWriter:
    """Give a writer with the controller's rights."""
    return KubeWriter(client)


async def stored(cluster: Cluster, name: str) -> Session:
    """Read a Session that must be there."""
    session = await cluster.read_session(name)
    assert session is not None
    return session


async def test_hold_is_one_write(cluster: Cluster, writer: KubeWriter) -> None:
    """Finalizer and intent come in one version: no crash can leave the one without the other."""
    seen = await cluster.session("hold")

    held = await writer.hold(seen.metadata, intent="node-a/p-1")

    assert (held.metadata.finalizers, held.metadata.bind_intent) == ((FINALIZER,), "node-a/p-1")
    assert held == await stored(cluster, "hold")


async def test_hold_without_intent_notes_none(cluster: Cluster, writer: KubeWriter) -> None:
    """A Session whose Pod has no node yet is held, and says that nothing was begun."""
    seen = await cluster.session("no-intent")

    held = await writer.hold(seen.metadata, intent=None)

    assert (held.metadata.finalizers, held.metadata.bind_intent) == ((FINALIZER,), None)


async def test_hold_keeps_what_others_wrote(cluster: Cluster, writer: KubeWriter) -> None:
    """Foreign finalizers and annotations stay, ours come after."""
    await cluster.session("shared", finalizers=FOREIGN)
    note = {"metadata": {"annotations": {"a.example/note": "kept"}}}
    await cluster.patch("sessions", "shared", note)
    seen = await stored(cluster, "shared")

    held = await writer.hold(seen.metadata, intent="node-a/p-1")

    assert held.metadata.finalizers == (*FOREIGN, FINALIZER)
    assert held.metadata.annotations["a.example/note"] == "kept"


@pytest.mark.parametrize("before", [(), FOREIGN[:1]], ids=["no-list", "a-list"])
@pytest.mark.parametrize("after", [FOREIGN, ()], ids=["grown", "emptied"])
async def test_hold_never_overwrites_a_list_made_meanwhile(
    cluster: Cluster, writer: KubeWriter, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    """Whoever changed the finalizers after our look keeps their change; we look again."""
    name = f"meanwhile-{len(before)}-{len(after)}"
    seen = await cluster.session(name, finalizers=before)
    change = {"metadata": {"finalizers": list(after), "labels": {"changed": "yes"}}}
    await cluster.patch("sessions", name, change)

    with pytest.raises(Stale):
        await writer.hold(seen.metadata, intent=None)

    assert (await stored(cluster, name)).metadata.finalizers == after


async def test_hold_never_overwrites_annotations_made_meanwhile(
    cluster: Cluster, writer: KubeWriter
) -> None:
    """The first annotation of someone else is not lost to our first one."""
    seen = await cluster.session("annotated", finalizers=(FINALIZER,))
    note = {"metadata": {"annotations": {"a.example/note": "kept"}}}
    await cluster.patch("sessions", "annotated", note)

    with pytest.raises(Stale):
        await writer.hold(seen.metadata, intent="node-a/p-1")

    assert (await stored(cluster, "annotated")).metadata.annotations == {"a.example/note": "kept"}


@pytest.mark.parametrize("foreign", [(), FOREIGN], ids=["alone", "among-others"])
async def test_hold_whose_answer_was_lost_is_not_done_twice(
    cluster: Cluster, writer: KubeWriter, foreign: tuple[str, ...]
) -> None:
    """A repeat from the same look is stale, and the finalizer is there once."""
    name = f"twice-{len(foreign)}"
    seen = await cluster.session(name, finalizers=foreign)
    await writer.hold(seen.metadata, intent="node-a/p-1")

    with pytest.raises(Stale):
        await writer.hold(seen.metadata, intent="node-a/p-1")

    assert (await stored(cluster, name)).metadata.finalizers == (*foreign, FINALIZER)


PATCHES: dict[str, Callable[[KubeWriter, Metadata], Awaitable[Session]]] = {
    "hold": lambda writer, seen: writer.hold(seen, intent="node-a/p-1"),
    "status": lambda writer, seen: writer.record_status(seen, make_status(Phase.ACTIVE)),
    "drop": lambda writer, seen: writer.drop_finalizer(seen),
}


@pytest.mark.parametrize("verb", PATCHES)
async def test_patch_leaves_a_namesake_alone(
    cluster: Cluster, writer: KubeWriter, verb: str
) -> None:
    """A Session of the same name that came later is never written to: look again."""
    finalizers = () if verb == "hold" else (FINALIZER,)
    namesake = await cluster.session(f"namesake-{verb}", finalizers=finalizers)
    seen = msgspec.structs.replace(namesake.metadata, uid="0b1c8e4a-0000-4000-8000-000000000000")

    with pytest.raises(Stale):
        await PATCHES[verb](writer, seen)

    assert await stored(cluster, f"namesake-{verb}") == namesake


@pytest.mark.parametrize("place", range(3))
async def test_drop_removes_our_finalizer_and_no_other(
    cluster: Cluster, writer: KubeWriter, place: int
) -> None:
    """Wherever ours stands in the list, the others stay as they are."""
    finalizers = [*FOREIGN]
    finalizers.insert(place, FINALIZER)
    seen = await cluster.session(f"place-{place}", finalizers=tuple(finalizers))

    left = await writer.drop_finalizer(seen.metadata)

    assert left.metadata.finalizers == FOREIGN


async def test_drop_is_stale_when_the_list_has_shifted(
    cluster: Cluster, writer: KubeWriter
) -> None:
    """An index that now is someone else's finalizer removes nothing."""
    seen = await cluster.session("shifted", finalizers=(FOREIGN[0], FINALIZER))
    shifted = (FINALIZER, FOREIGN[1])
    await cluster.patch("sessions", "shifted", {"metadata": {"finalizers": list(shifted)}})

    with pytest.raises(Stale):
        await writer.drop_finalizer(seen.metadata)

    assert (await stored(cluster, "shifted")).metadata.finalizers == shifted


async def test_drop_without_a_finalizer_is_stale(cluster: Cluster, writer: KubeWriter) -> None:
    """A human was faster: that is news, no defect."""
    seen = await cluster.session("dropped")

    with pytest.raises(Stale):
        await writer.drop_finalizer(seen.metadata)


async def test_last_finalizer_lets_a_deleted_session_go(
    cluster: Cluster, writer: KubeWriter
) -> None:
    """A deleted Session is there until our finalizer goes, and not a moment longer."""
    await cluster.session("last", finalizers=(FINALIZER,))
    await cluster.delete("sessions", "last")
    seen = await stored(cluster, "last")

    await writer.drop_finalizer(seen.metadata)

    assert await cluster.read("sessions", "last") is None


@pytest.mark.parametrize("phase", list(Phase))
async def test_status_reads_back_as_it_was_written(
    cluster: Cluster, writer: KubeWriter, phase: Phase
) -> None:
    """What the rules decide is what the apiserver keeps, in every phase."""
    name = f"status-{phase.lower()}"
    seen = await cluster.session(name)
    status = make_status(phase)

    answer = await writer.record_status(seen.metadata, status)

    assert answer.status == (await stored(cluster, name)).status == status


async def test_status_is_written_whole(cluster: Cluster, writer: KubeWriter) -> None:
    """What the new status does not say is gone: a cancelled end leaves no date behind."""
    seen = await cluster.session("whole")
    bound, grace = make_status(Phase.ACTIVE), timedelta(seconds=60)
    waits = pending_destroy(bound, Reason.HEARTBEAT_LOST, now=NOW, grace=grace)
    await writer.record_status(seen.metadata, waits)

    await writer.record_status(seen.metadata, bound)

    assert (await stored(cluster, "whole")).status == bound


async def test_status_patch_leaves_the_spec_alone(cluster: Cluster, writer: KubeWriter) -> None:
    """A change of the spec made meanwhile stays."""
    seen = await cluster.session("spec")
    await cluster.patch("sessions", "spec", {"spec": {"desiredPhase": "Destroyed"}})

    await writer.record_status(seen.metadata, make_status(Phase.ACTIVE))

    assert (await stored(cluster, "spec")).spec.desired_phase is Phase.DESTROYED


@pytest.mark.parametrize("epoch", [2, 0])
async def test_deposed_leader_writes_no_status(
    cluster: Cluster, writer: KubeWriter, epoch: int
) -> None:
    """A lower epoch is refused by the apiserver itself, also where it is none at all."""
    seen = await cluster.session(f"epoch-{epoch}")
    status = make_status(Phase.ACTIVE)
    await writer.record_status(seen.metadata, msgspec.structs.replace(status, leader_epoch=3))
    deposed = msgspec.structs.replace(status, leader_epoch=epoch)

    with pytest.raises(Refused, match="leaderEpoch never falls"):
        await writer.record_status(seen.metadata, deposed)


@pytest.mark.parametrize(
    ("before", "after"),
    [(Phase.DESTROYED, Phase.ACTIVE), (Phase.ACTIVE, Phase.PENDING)],
    ids=["from-destroyed", "from-active"],
)
async def test_phase_does_not_move_backwards(
    cluster: Cluster, writer: KubeWriter, before: Phase, after: Phase
) -> None:
    """Old news cannot undo an end: the apiserver refuses, with the sentence of the CRD."""
    seen = await cluster.session(f"back-from-{before.lower()}")
    await writer.record_status(seen.metadata, make_status(before))

    with pytest.raises(Refused, match=f"phase does not move from {before} to {after}"):
        await writer.record_status(seen.metadata, make_status(after))


async def test_destroyed_without_evidence_is_refused(cluster: Cluster, writer: KubeWriter) -> None:
    """No bug of ours can write Destroyed on trust."""
    seen = await cluster.session("trust")

    with pytest.raises(Refused, match="Destroyed needs evidence"):
        await writer.record_status(seen.metadata, SessionStatus(phase=Phase.DESTROYED))


async def test_pod_deletion_leaves_it_its_grace(cluster: Cluster, writer: KubeWriter) -> None:
    """The consenting Pod of this uid is terminating, with the grace that was asked for."""
    pod = await cluster.pod("consents")

    await writer.delete_pod(cluster.namespace, "consents", uid=pod.metadata.uid, grace=GRACE)

    metadata = (await cluster.read("pods", "consents") or {})["metadata"]
    assert metadata["deletionGracePeriodSeconds"] == 1


@pytest.mark.parametrize("is_there", [True, False], ids=["replaced", "gone"])
async def test_pod_that_is_not_the_one_is_left_alone(
    cluster: Cluster, writer: KubeWriter, *, is_there: bool
) -> None:
    """A replaced Pod lives on, and one that is gone is as good as deleted."""
    name = f"replaced-{is_there}".lower()
    pod = await cluster.pod(name)
    await cluster.remove_pod(name)
    if is_there:
        await cluster.pod(name)

    await writer.delete_pod(cluster.namespace, name, uid=pod.metadata.uid, grace=GRACE)

    found = await cluster.read("pods", name)
    assert (found is not None) == is_there
    assert "deletionTimestamp" not in (found or {}).get("metadata", {})


@pytest.mark.parametrize("use", [None, "shared"])
async def test_pod_without_consent_is_not_deleted(
    cluster: Cluster, writer: KubeWriter, use: str | None
) -> None:
    """The policy holds us to the label, whatever we believe."""
    name = f"unlabelled-{use}".lower()
    pod = await cluster.pod(name, use=use)

    with pytest.raises(Refused, match=r"gpusession\.dev/use=exclusive") as refusal:
        await writer.delete_pod(cluster.namespace, name, uid=pod.metadata.uid, grace=GRACE)

    assert refusal.value.reason == "Forbidden"


@pytest.mark.parametrize("is_namesake", [True, False], ids=["namesake", "itself"])
async def test_session_deletion_is_held_to_the_uid(
    cluster: Cluster, writer: KubeWriter, *, is_namesake: bool
) -> None:
    """Only this very Session is deleted; to repeat it is no error."""
    name = f"deletion-{is_namesake}".lower()
    seen = (await cluster.session(name)).metadata
    if is_namesake:
        seen = msgspec.structs.replace(seen, uid="0b1c8e4a-0000-4000-8000-000000000000")

    await writer.delete_session(seen)
    await writer.delete_session(seen)

    assert (await cluster.read("sessions", name) is not None) == is_namesake


async def test_end_is_announced_once(cluster: Cluster, writer: KubeWriter) -> None:
    """A second announcement finds the first and adds no Event."""
    seen = await cluster.session("announced")
    news = {"reason": "Deleted", "message": "Session ended", "at": AT}

    told = [await writer.announce(seen.metadata, **news) for _ in range(2)]

    events = [e for e in await cluster.events() if e["involvedObject"]["uid"] == seen.metadata.uid]
    assert (told, len(events)) == ([True, True], 1)
    assert (events[0]["reason"], events[0]["message"]) == ("Deleted", "Session ended")


async def test_news_of_another_kind_does_not_hide_the_end(
    cluster: Cluster, writer: KubeWriter
) -> None:
    """What observe mode told before is an Event of its own."""
    seen = await cluster.session("observed")
    await writer.announce(seen.metadata, reason="WouldEnd", message="it", at=AT, about="Idle")

    await writer.announce(seen.metadata, reason="Deleted", message="Session ended", at=AT)

    events = [e for e in await cluster.events() if e["involvedObject"]["uid"] == seen.metadata.uid]
    assert {e["reason"] for e in events} == {"WouldEnd", "Deleted"}


async def test_end_in_a_terminating_namespace_is_not_announced(
    session_api: ControlPlane, cluster: Cluster, writer: KubeWriter
) -> None:
    """A namespace on its way out refuses Events; that is no error, and no lie either."""
    create_namespace(session_api, "terminating")
    dying = Cluster(cluster.admin, "terminating")
    seen = await dying.session("held", finalizers=(FINALIZER,))
    session_api.kubectl("delete", "namespace", "terminating", "--wait=false")
    what = ("get", "namespace", "terminating", "-o=jsonpath={.status.phase}")
    wait_until(
        lambda: session_api.kubectl(*what).stdout == "Terminating", timeout=10, what="the end"
    )

    told = await writer.announce(seen.metadata, reason="Deleted", message="ended", at=AT)

    remove_namespace(session_api, "terminating")
    assert not told
