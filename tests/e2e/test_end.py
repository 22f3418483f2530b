"""How Sessions end when nothing goes wrong."""

from pathlib import Path

import pytest
import redis
from tests.support.session_world import World

pytestmark = pytest.mark.timeout(90)

MEMORY = 3 * 2**30


def test_deleting_a_session_frees_its_memory_and_its_state(world: World) -> None:
    """Kubectl delete returns only after NVML shows the bytes free and the keys are gone."""
    base = f"{world.namespace}:chat"
    with redis.Redis.from_url(world.stack.state.url, decode_responses=True) as client:
        client.mset({base: 1, f"{base}:a": 1, f"{base}:cache:1": 1, f"{base}x": 1})
        state = {"keys": [base, f"{base}:a"], "keyPrefixes": [f"{base}:cache:"]}
        status = world.start("chat", "--memory=3Gi", state=state)
        born = world.processes(status["podUID"])
        assert world.held({b.pid for b in born}) == MEMORY

        world.kubectl("delete", "session", "chat", "--timeout=30s")

        assert not any(b.lives for b in born)
        assert world.held({b.pid for b in born}) == 0
        assert client.keys(f"{base}*") == [f"{base}x"]


def test_a_closed_session_stays_with_its_evidence(world: World) -> None:
    """Closing keeps the object: verdict, bytes as NVML saw them, conditions."""
    world.start("notebook", "--memory=3Gi")

    world.close("notebook")
    status = world.wait_phase("notebook", "Destroyed")

    release = status["release"]
    assert release["verdict"] == "Freed"
    assert (release["memoryBytesBefore"], release["memoryBytesAfter"]) == (MEMORY, 0)
    assert world.reason("notebook", "Finished") == "ExplicitClose"
    world.wait(
        lambda: "finalizers" not in (world.get("notebook") or {})["metadata"], "no finalizer left"
    )


def test_only_the_ladder_ends_a_pod_that_is_not_deleted(world: World) -> None:
    """With onRelease None nobody but the agent can free the memory, and it does."""
    spec = world.session("kept", on_release="None")["spec"]
    world.apply(world.pod("kept", "--memory=3Gi", "--ignore-sigterm"))
    world.apply(world.session("kept") | {"spec": spec})
    born = world.processes(world.wait_phase("kept", "Active")["podUID"])

    world.close("kept")
    status = world.wait_phase("kept", "Destroyed")

    assert status["release"]["verdict"] == "Freed"
    assert born
    assert not any(b.lives for b in born)
    assert world.kubectl("get", "pod", "kept", "-o", "jsonpath={.metadata.name}") == "kept"


def test_a_pod_that_never_held_memory_ends_as_nothing_held(world: World) -> None:
    """The verdict does not claim to have freed what was never there."""
    world.start("empty")

    world.close("empty")

    assert world.wait_phase("empty", "Destroyed")["release"]["verdict"] == "NothingHeld"


def test_a_session_knows_its_gpu_before_its_pod_holds_anything(world: World) -> None:
    """Kubelet tells it at the bind, and given is not held."""
    status = world.start("early")
    (process,) = world.processes(status["podUID"])

    environment = Path(f"/proc/{process.pid}/environ").read_text().split("\0")

    assert [f"NVIDIA_VISIBLE_DEVICES={uuid}" for uuid in status["gpuUUIDs"]] == [
        variable for variable in environment if variable.startswith("NVIDIA_VISIBLE")
    ]
    assert not status.get("seenHolding")


def test_an_end_costs_seven_writes_at_most_and_a_quiet_life_none(world: World) -> None:
    """Finalizer, Active, PendingDestroy, Pod, Destroyed, Event, finalizer: no write more."""
    world.start("frugal", "--memory=1Gi")
    world.wait(lambda: len(world.writes()) >= 2, "the first writes in the audit log")
    begun = len(world.writes())

    world.kubectl("delete", "session", "frugal", "--timeout=30s")
    world.wait(lambda: len(world.writes()) >= 7, "the last write in the audit log")

    assert begun == 2
    assert len(world.writes()) == 7, world.writes()


def test_an_end_is_told_in_one_event(world: World) -> None:
    """Kubectl describe shows why the Session ended and what was freed."""
    world.start("told", "--memory=1Gi")

    world.close("told")
    world.wait_phase("told", "Destroyed")
    world.wait(lambda: "Freed" in world.kubectl("get", "events"), "the Event")

    assert world.kubectl("get", "events", "-o", "name").count("told") == 1


def test_a_namespace_goes_with_ten_sessions_in_it(world: World) -> None:
    """Nothing that the end needs is refused by a terminating namespace."""
    names = [f"s{number}" for number in range(10)]
    nodes = ("node-a", "node-b")
    world.apply(*(world.pod(n, "--memory=1Gi", node=nodes[i % 2]) for i, n in enumerate(names)))
    world.apply(*(world.session(name) for name in names))
    for name in names:
        world.wait_phase(name, "Active")

    world.stack.plane.kubectl("delete", "namespace", world.namespace, "--timeout=60s")

    assert world.stack.plane.read(f"/api/v1/namespaces/{world.namespace}") is None
