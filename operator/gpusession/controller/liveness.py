"""Everything that watches the clients of Sessions, wired together; a leader has one.

Tasks: the sweep of the deadlines, the event stream, the poll of the agents' GPU usage.
"""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

from gpusession.agent_client import AgentClient
from gpusession.controller.brakes import Brakes
from gpusession.controller.census import Census
from gpusession.controller.intake import Intake
from gpusession.controller.lives import Lives
from gpusession.controller.records import RecordKeeper
from gpusession.controller.sessions import SessionCache
from gpusession.controller.stream import EventFollower
from gpusession.controller.sweeper import Cadence, Source, Sweeper
from gpusession.controller.usage import UsageKeeper
from gpusession.rules.brake import BrakeLimits
from gpusession.rules.continuity import Tolerances
from gpusession.settings import ControllerSettings
from gpusession.store.client import RedisClient
from gpusession.store.deadlines import DeadlineStore
from gpusession.store.events import EventBus
from gpusession.store.gateways import GatewayRegistry
from gpusession.store.pulse import Pulse
from gpusession.store.sessions import Proof, SessionStore


class LivenessWatch:
    """Builds the parts; `records` and `lives` are for the worker's side.

    `listener` is a client of its own: a wait for news holds its connection.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        client: RedisClient,
        listener: RedisClient,
        *,
        sessions: SessionCache,
        intake: Intake,
        agents: AgentClient,
        clock: Callable[[], datetime],
    ) -> None:
        store, gateways = SessionStore(client), GatewayRegistry(client)
        tolerances = Tolerances(
            longest_stall=settings.longest_sweep_stall,
            longest_gap=settings.longest_sweep_gap,
            clock_error=settings.clock_error,
        )
        self.usage = UsageKeeper(
            agents=agents, store=store, sessions=sessions, period=settings.usage_period
        )
        monotonic = asyncio.get_running_loop().time
        brakes = Brakes(_limits(settings), works=self.usage.works, clock=monotonic)
        self.records = RecordKeeper(store, sessions, proof=self._proof, clock=clock)
        self.sweeper = Sweeper(
            Source(Pulse(client), DeadlineStore(client, lease=settings.deadline_lease), gateways),
            brakes=brakes,
            sessions=sessions,
            census=Census(
                sessions=sessions,
                brakes=brakes,
                gateways=gateways,
                suspect=intake.suspect,
                clock=clock,
                period=settings.census_period,
            ),
            suspect=intake.suspect,
            restore=self.records.restore,
            cadence=Cadence(settings.sweep_period, tolerances),
        )
        self.lives = Lives(
            store,
            watching=lambda: self.sweeper.watch,
            brakes=brakes,
            usage=self.usage,
            tolerances=tolerances,
        )
        self.follower = EventFollower(
            EventBus(listener), consumer=settings.identity, suspect=intake.suspect
        )

    @property
    def tasks(self) -> tuple[Callable[[], Coroutine[Any, Any, None]], ...]:
        """What runs for as long as this process leads."""
        return self.sweeper.run, self.follower.run, self.usage.run, self.records.run

    def _proof(self, since: datetime | None) -> Proof | None:
        return self.sweeper.proof(since)


def _limits(settings: ControllerSettings) -> BrakeLimits:
    return BrakeLimits(
        minimum=settings.brake_minimum,
        partial_share=settings.brake_partial_share,
        full_share=settings.brake_full_share,
        share_per_second=settings.brake_share_per_second,
        window=settings.brake_window,
        hold=settings.brake_hold,
    )
