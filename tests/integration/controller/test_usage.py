"""Asking the agents whose GPU works: what is not known is never written as idle."""

import asyncio
from datetime import timedelta

import msgspec
import pytest
from tests.support.builders import make_metadata, make_session, make_status
from tests.support.cluster import running, until
from tests.support.controller_rig import ControllerRig

from gpusession.api.session import Phase
from gpusession.api.usage import Busy, SessionUsage, UsageReport
from gpusession.controller.usage import UsageKeeper
from gpusession.store.client import RedisClient
from gpusession.store.sessions import Record, SessionStore


def keeper(rig: ControllerRig, period: float = 60.0) -> UsageKeeper:
    """Give a keeper that asks the rig's agent."""
    return UsageKeeper(
        agents=rig.agents,
        store=rig.store,
        sessions=rig.sessions,
        period=timedelta(seconds=period),
    )


async def opens(rig: ControllerRig, *, uid: str = "s-1", node: str = "nowhere") -> None:
    """Give an Active Session with its record."""
    status = msgspec.structs.replace(make_status(Phase.ACTIVE), node_name=node)
    session = make_session(metadata=make_metadata(uid=uid), status=status)
    rig.sessions.keep(session)
    await rig.records.open(session, status)


def says(rig: ControllerRig, **busy: Busy) -> None:
    """Have the agent say this of Sessions."""
    rig.agent.usage_report = UsageReport(
        boot_id="b",
        sessions=tuple(
            SessionUsage(session_uid=uid.replace("_", "-"), busy=what) for uid, what in busy.items()
        ),
    )


async def record(rig: ControllerRig, uid: str = "s-1") -> Record:
    """Read a record that is there."""
    sighting = await rig.store.read(uid)
    assert sighting is not None
    return sighting.record


@pytest.mark.parametrize(("busy", "works"), [(Busy.BUSY, True), (Busy.NOT_BUSY, False)])
async def test_what_the_agent_says_is_noted(rig: ControllerRig, busy: Busy, *, works: bool) -> None:
    """In the record, and for the brakes."""
    await opens(rig)
    says(rig, s_1=busy)
    usage = keeper(rig)

    await usage.poll()

    noted = await record(rig)
    assert (usage.works("s-1"), noted.gpu is not None) == (works, works)
    assert noted.gpuseen is not None


async def test_unknown_is_no_idleness(rig: ControllerRig) -> None:
    """It is a gap, as if nobody had answered."""
    await opens(rig)
    says(rig, s_1=Busy.UNKNOWN)
    usage = keeper(rig)

    await usage.poll()

    assert usage.works("s-1") is None
    assert (await record(rig)).gpuseen is None


async def test_silent_agent_leaves_a_gap(rig: ControllerRig) -> None:
    """And holds up no other node."""
    await opens(rig, uid="s-2", node="elsewhere")
    await opens(rig)
    says(rig, s_1=Busy.NOT_BUSY, s_2=Busy.NOT_BUSY)
    usage = keeper(rig)

    await usage.poll()

    assert (usage.works("s-1"), usage.works("s-2")) == (False, None)
    assert (await record(rig, "s-2")).gpuseen is None


async def test_agent_speaks_only_of_its_own_node(rig: ControllerRig) -> None:
    """Whatever else it says is nobody's evidence."""
    await opens(rig, uid="s-2", node="elsewhere")
    await opens(rig)
    says(rig, s_2=Busy.NOT_BUSY)
    usage = keeper(rig)

    await usage.poll()

    assert usage.works("s-2") is None


async def test_old_answer_expires(rig: ControllerRig) -> None:
    """After three periods without another one nobody knows."""
    await opens(rig)
    says(rig, s_1=Busy.NOT_BUSY)
    usage = keeper(rig, period=0.05)
    await usage.poll()
    fresh = usage.works("s-1")

    rig.agent.usage_report = None
    async with running(usage.run()):
        await until(lambda: usage.works("s-1") is None, what="the end of it")

    assert fresh is False


async def test_session_that_is_gone_is_forgotten(rig: ControllerRig) -> None:
    """The memory is of those that are there."""
    await opens(rig)
    says(rig, s_1=Busy.BUSY)
    usage = keeper(rig)
    await usage.poll()
    rig.sessions.drop("s-1")

    await usage.poll()

    assert usage._works == {}


async def test_lost_redis_stops_no_poll(rig: ControllerRig) -> None:
    """The brakes still know."""
    await opens(rig)
    says(rig, s_1=Busy.BUSY)
    usage = keeper(rig)

    async with RedisClient("redis://127.0.0.1:1", timeout=timedelta(seconds=1)) as nobody:
        usage._store = SessionStore(nobody)
        await usage.poll()

    assert usage.works("s-1") is True


@pytest.mark.parametrize("answers", [True, False])
async def test_agent_is_asked_whether_it_is_there(rig: ControllerRig, *, answers: bool) -> None:
    """Now, whatever it said before."""
    if not answers:
        rig.agent.usage_report = None

    assert await keeper(rig).answers("nowhere") is answers


async def test_a_node_is_asked_once_however_many_wait(rig: ControllerRig) -> None:
    """And for a moment its answer is everybody's."""
    usage = keeper(rig)

    answers = await asyncio.gather(*(usage.answers("nowhere") for _ in range(20)))
    answers.append(await usage.answers("nowhere"))

    assert answers == [True] * 21
    assert rig.agent.usages == 1


async def test_an_agent_that_takes_its_time_holds_up_nobody(
    rig: ControllerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks goes on without an answer; the one who asks later has it."""
    monkeypatch.setattr("gpusession.controller.usage.ANSWER_PATIENCE", 0.1)
    rig.agent.usage_pause = 1.0
    usage = keeper(rig)

    early = await usage.answers("nowhere")
    await until(lambda: not usage._questions, what="the answer")

    assert (early, await usage.answers("nowhere")) == (False, True)
    assert rig.agent.usages == 1


async def test_an_old_answer_lets_nobody_end(
    rig: ControllerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be from before the node fell silent."""
    monkeypatch.setattr("gpusession.controller.usage.ANSWERED_FOR", 0.0)
    usage = keeper(rig)
    before = await usage.answers("nowhere")
    rig.agent.usage_report = None

    assert (before, await usage.answers("nowhere")) == (True, False)


async def test_a_silent_agent_is_not_asked_at_each_look(rig: ControllerRig) -> None:
    """Dark nodes would keep the workers busy."""
    rig.agent.usage_report = None
    usage = keeper(rig)

    answers = [await usage.answers("nowhere") for _ in range(3)]

    assert answers == [False] * 3
    assert rig.agent.usages == 1
