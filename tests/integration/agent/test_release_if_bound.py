"""Releases of Sessions that may never have been bound: nobody else's Pod is touched."""

from tests.support.agent_rig import AgentRig

from gpusession.api.release import Mode, Verdict


async def test_if_bound_spares_a_pod_that_the_session_never_had(rig: AgentRig) -> None:
    """NotBound, nobody is signalled, and a bind that comes late finds the door shut."""
    pod = await rig.start_pod()

    report = await rig.releaser.release(rig.order(pod, mode=Mode.IF_BOUND))
    late = await rig.binder.bind(rig.bind_request(pod))

    assert (report.verdict, report.processes_ended) == (Verdict.NOT_BOUND, 0)
    assert len(rig.pids(pod)) == 1
    assert not late.bound


async def test_if_bound_releases_what_was_bound(rig: AgentRig) -> None:
    """The answer to the bind was lost, the bind was not."""
    pod = await rig.start_pod()
    await rig.binder.bind(rig.bind_request(pod))

    report = await rig.releaser.release(rig.order(pod, mode=Mode.IF_BOUND))

    assert (report.verdict, report.processes_ended) == (Verdict.FREED, 1)


async def test_a_session_may_turn_to_the_successor_of_a_pod_that_was_proven_empty(
    rig: AgentRig,
) -> None:
    """The old claim is done, so the same Session may claim the Pod that took its place."""
    first = await rig.start_pod("first")
    await rig.binder.bind(rig.bind_request(first))
    await rig.releaser.release(rig.order(first, mode=Mode.IF_BOUND))
    second = await rig.start_pod("second")

    report = await rig.binder.bind(rig.bind_request(second))

    assert report.bound
    assert len(rig.pids(second)) == 1
