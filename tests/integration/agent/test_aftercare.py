"""What appears in a Pod after its verdict, by real processes that a kubelet might start."""

import asyncio
from datetime import timedelta
from typing import Any

from tests.support.agent_rig import AgentRig, RunningPod
from tests.support.cluster import until

from gpusession.agent.ledger_row import RowState
from gpusession.api.release import Mode, Verdict
from gpusession.api.session import StateKeys

ENDING = {"deletionTimestamp": "2026-01-01T00:00:00Z"}


async def released(rig: AgentRig, **more: Any) -> RunningPod:
    """Release a Pod whose deletion has begun, and give it."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    _say(rig, pod, **ENDING)
    report = await rig.releaser.release(rig.order(pod, **more))
    assert report.verdict is Verdict.FREED
    return pod


def _say(rig: AgentRig, pod: RunningPod, *, use: str = "exclusive", **meta: Any) -> None:
    rig.apiserver.add_pod(pod.name, uid=pod.uid, node="node-a", use=use, **meta)


async def test_a_container_that_comes_back_after_the_verdict_is_ended(rig: AgentRig) -> None:
    """Kubelet noticed the death before the deletion: nobody orders anything any more."""
    pod = await released(rig)

    again = rig.restart(pod)

    await until(lambda: again.shim.has_exited, what="the second container's end")
    await _settled(rig, attempts=2)


async def test_it_is_ended_as_often_as_it_comes_back(rig: AgentRig) -> None:
    """Each end begins the time anew."""
    await rig.start_agent(aftercare=timedelta(seconds=2))
    pod = await released(rig)

    for _ in range(3):
        again = rig.restart(pod)
        await until(lambda one=again: one.shim.has_exited, what="another end")
        await asyncio.sleep(1.2)


async def test_a_look_that_fails_is_made_again(rig: AgentRig) -> None:
    """A list that cannot be read for a moment ends no watch."""
    pod = await released(rig)
    listed = rig.root / "cgroup" / pod.cgroup / "cgroup.procs"
    listed.unlink()
    listed.mkdir()
    await asyncio.sleep(0.3)
    listed.rmdir()

    again = rig.restart(pod)

    await until(lambda: again.shim.has_exited, what="the second container's end")


async def test_a_pod_that_may_be_restarted_is_left_alone(rig: AgentRig) -> None:
    """Nobody deletes it: what kubelet starts is its user's wish, as a later Session's is."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    await rig.releaser.release(rig.order(pod))

    assert await _is_left_alone(rig, pod)


async def test_who_only_verified_ends_nobody_afterwards(rig: AgentRig) -> None:
    """Somebody else deletes the Pod: its own grace runs, and nothing of it was signalled."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    _say(rig, pod, **ENDING)
    pod.shim.kill()
    await pod.shim.wait()
    report = await rig.releaser.release(rig.order(pod, mode=Mode.VERIFY))
    assert report.verdict is Verdict.FREED

    assert await _is_left_alone(rig, pod)
    row = await rig.ledger.find("session-1")
    assert row is not None
    assert row.state is RowState.DONE


async def test_a_pod_that_withdraws_its_consent_is_left_alone(rig: AgentRig) -> None:
    """Also after a verdict: the label is read before each signal."""
    pod = await released(rig)
    _say(rig, pod, use="nobody", **ENDING)

    assert await _is_left_alone(rig, pod)


async def test_after_its_time_nobody_looks(rig: AgentRig) -> None:
    """It is bounded, and so is what it costs."""
    await rig.start_agent(aftercare=timedelta(seconds=0.2))
    pod = await released(rig)
    await until(lambda: not _watchers(), what="the end of the watch")

    assert await _is_left_alone(rig, pod)


async def test_a_pod_without_a_cgroup_is_watched_no_longer(rig: AgentRig) -> None:
    """Kubelet removes it last: nothing can start there again."""
    await rig.start_agent(aftercare=timedelta(seconds=60))
    pod = await released(rig)
    assert _watchers()

    rig.files.remove_pod(pod.cgroup)

    await until(lambda: not _watchers(), what="the end of the watch")


async def test_an_agent_that_stops_watches_no_more(rig: AgentRig) -> None:
    """It does not wait for the time to be over."""
    await released(rig)
    assert _watchers()

    await rig.releaser.drain(within=timedelta(seconds=1))

    assert not _watchers()


async def test_the_next_agent_looks_after_what_the_last_one_released(rig: AgentRig) -> None:
    """Also for what kubelet started while there was none."""
    pod = await released(rig)
    await rig.start_agent()
    meanwhile = rig.restart(pod)
    await rig.releaser.resume()

    await until(lambda: meanwhile.shim.has_exited, what="the second container's end")
    again = rig.restart(pod)

    await until(lambda: again.shim.has_exited, what="the third container's end")


async def test_the_next_agent_leaves_alone_who_may_be_restarted(rig: AgentRig) -> None:
    """What the last one did not watch is none of its business either."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))
    await rig.releaser.release(rig.order(pod))
    await rig.start_agent()
    await rig.releaser.resume()

    assert await _is_left_alone(rig, pod)


async def test_the_next_agent_watches_no_pod_that_is_gone(rig: AgentRig) -> None:
    """The ledger keeps a week of them."""
    pod = await released(rig)
    rig.files.remove_pod(pod.cgroup)
    await rig.start_agent()

    await rig.releaser.resume()

    assert not _watchers()


async def test_a_pod_of_before_a_reboot_is_not_watched(rig: AgentRig) -> None:
    """Whatever runs in it now was not started behind a verdict."""
    pod = await released(rig)
    rig.boot_id = "boot-2"
    await rig.start_agent()

    await rig.releaser.resume()

    assert await _is_left_alone(rig, pod)


async def test_a_cleared_state_ends_no_watch(rig: AgentRig) -> None:
    """A repeated order, for Redis alone, keeps what the ledger says of the Pod."""
    pod = await released(rig)
    await rig.releaser.release(rig.order(pod, state=StateKeys(keys=("default:pod:k",))))
    await rig.start_agent()
    await rig.releaser.resume()

    assert _watchers()


async def _is_left_alone(rig: AgentRig, pod: RunningPod) -> bool:
    """Tell whether a container that comes back now is still there after several looks."""
    again = rig.restart(pod)
    await asyncio.sleep(0.5)
    return not again.shim.has_exited


def _watchers() -> list[str]:
    names = (task.get_name() for task in asyncio.all_tasks() if not task.done())
    return [name for name in names if name.startswith("aftercare ")]


async def _settled(rig: AgentRig, *, attempts: int) -> None:
    """Wait until the ledger has the last verdict, which says of which attempt it is."""
    async with asyncio.timeout(10):
        while True:
            row = await rig.ledger.find("session-1")
            if row is not None and row.attempts == attempts and row.state is RowState.DONE:
                assert row.report is not None
                assert row.report.verdict is Verdict.FREED
                return
            await asyncio.sleep(0.02)
