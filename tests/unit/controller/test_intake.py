"""Every trigger makes the right keys ready, and nothing else."""

from typing import Any

import pytest
from tests.support.builders import make_metadata, make_node, make_pod, make_session, make_status

from gpusession.api.session import Phase, Session
from gpusession.controller.intake import Intake
from gpusession.controller.queue import DestroyQueue, Priority
from gpusession.controller.sessions import SessionCache


class Keys(DestroyQueue):
    """Only remembers what it is asked."""

    def __init__(self) -> None:
        self.added: dict[str, Priority] = {}
        self.forgotten: list[str] = []

    def add(self, key: str, priority: Priority) -> None:
        """Remember a key."""
        self.added[key] = priority

    def forget(self, key: str) -> None:
        """Remember a forgotten key."""
        self.forgotten.append(key)


@pytest.fixture
def keys() -> Keys:
    """Give a queue without keys."""
    return Keys()


@pytest.fixture
def intake(keys: Keys) -> Intake:
    """Give an intake that knows one Active Session on node-a, with Pod lab/chat."""
    intake = Intake(SessionCache(), keys)
    intake.watched(session("s-1", phase=Phase.ACTIVE))
    keys.added.clear()
    return intake


def session(uid: str, *, version: int = 10, phase: Phase | None = None) -> Session:
    """Give a Session of this uid."""
    metadata = make_metadata(uid=uid, resource_version=str(version))
    return make_session(metadata=metadata, status=make_status(phase))


def test_news_of_the_watch_is_urgent(intake: Intake, keys: Keys) -> None:
    """It may be somebody's delete."""
    intake.watched(session("s-1", version=11, phase=Phase.ACTIVE))

    assert keys.added == {"s-1": Priority.EXPLICIT}


def test_event_of_our_own_write_wakes_nobody(intake: Intake, keys: Keys) -> None:
    """Its answer was taken in before; steady state stays silent."""
    intake.watched(session("s-1", phase=Phase.ACTIVE))

    assert keys.added == {}


@pytest.mark.parametrize(
    ("version", "woken"), [(10, set()), (11, {"s-1"})], ids=["known", "missed"]
)
def test_sweep_wakes_only_what_the_watch_missed(
    intake: Intake, keys: Keys, version: int, woken: set[str]
) -> None:
    """And it is less urgent than anybody's request."""
    intake.listed(session("s-1", version=version, phase=Phase.ACTIVE))

    assert keys.added == dict.fromkeys(woken, Priority.RESYNC)


def test_gone_session_is_forgotten_everywhere(intake: Intake, keys: Keys) -> None:
    """No key, no pause and no Pod leads to it any more."""
    intake.gone("s-1")
    intake.pod_changed(make_pod(), False)  # noqa: FBT003 - as a reflector calls it

    assert (keys.forgotten, keys.added) == (["s-1"], {})


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "changed"])
def test_pod_wakes_the_sessions_that_name_it(intake: Intake, keys: Keys, *, gone: bool) -> None:
    """By name: its uid may be the news."""
    intake.pod_changed(make_pod("p-2"), gone)

    assert keys.added == {"s-1": Priority.EXPLICIT}


@pytest.mark.parametrize(("node", "woken"), [("node-a", {"s-1"}), ("node-b", set())])
def test_node_wakes_the_sessions_that_are_bound_there(
    intake: Intake, keys: Keys, node: str, woken: set[str]
) -> None:
    """Sessions elsewhere sleep on."""
    intake.node_changed(make_node(name=node), False)  # noqa: FBT003 - as a reflector calls it

    assert set(keys.added) == woken


AGENTS: dict[str, tuple[Any, str, bool]] = {
    "pending anywhere": (Phase.PENDING, "node-z", True),
    "active here": (Phase.ACTIVE, "node-a", True),
    "active elsewhere": (Phase.ACTIVE, "node-z", False),
    "ending here": (Phase.PENDING_DESTROY, "node-a", True),
}


@pytest.mark.parametrize(("phase", "node", "woken"), AGENTS.values(), ids=AGENTS.keys())
def test_agent_wakes_whoever_may_have_waited_for_it(
    keys: Keys, phase: Phase, node: str, *, woken: bool
) -> None:
    """A repaired agent costs nobody the rest of a long pause."""
    intake = Intake(SessionCache(), keys)
    intake.watched(session("s-1", phase=phase))
    keys.added.clear()

    intake.agent_changed(node)

    assert ("s-1" in keys.added) is woken


def test_suspicion_is_taken_once(intake: Intake, keys: Keys) -> None:
    """The visit that takes it asks Redis, and the next one need not."""
    intake.suspect("s-1", Priority.HEARTBEAT)

    assert keys.added == {"s-1": Priority.HEARTBEAT}
    assert intake.take_suspicion("s-1")
    assert not intake.take_suspicion("s-1")


def test_suspicion_of_a_failed_visit_is_put_back(intake: Intake, keys: Keys) -> None:
    """Its key comes again by itself, after its pause."""
    intake.suspect_again("s-1")

    assert keys.added == {}
    assert intake.take_suspicion("s-1")


def test_nobody_unknown_is_suspected(intake: Intake, keys: Keys) -> None:
    """Else the list would grow with every event about a Session that is gone."""
    intake.suspect("s-9", Priority.HEARTBEAT)
    intake.suspect_again("s-9")
    intake.suspect_again("s-1")
    intake.gone("s-1")

    assert keys.added == {}
    assert not intake.take_suspicion("s-9")
    assert not intake.take_suspicion("s-1")
