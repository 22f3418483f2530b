"""Silence under any order of faults: it ends nobody who lives, and everybody who does not.

The same model cluster as test_lifecycle_machine, with clients, a Redis that forgets, and a
sweeper; what ends a Session for other reasons is left out, so that each run meets silence.
"""

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.support.lifecycle_world import Fate, World
from tests.unit.rules.test_lifecycle_machine import FATES, Lifecycle

from gpusession.api.session import OnRelease

BOUND = [Fate.ANSWERED] * 4


class Silence(RuleBasedStateMachine):
    """One Active Session, its client, and everything that may hide one from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Lifecycle()

    @property
    def world(self) -> World:
        """The model cluster."""
        return self.life.world

    @initialize(
        watch=st.sampled_from([*["clients"] * 4, "observed"]), grace=st.sampled_from([0, 10])
    )
    def begin(self, watch: str, grace: int) -> None:
        """Bind, and let a client beat under an old watch."""
        self.life.begin(
            OnRelease.DELETE_POD, BOUND, asked=False, crashed="", watch=watch, grace=grace
        )
        self.world.pass_time(timedelta(seconds=100))

    @rule(fates=st.lists(FATES, min_size=1, max_size=4))
    def work(self, fates: list[Fate]) -> None:
        """Go on with the visit for a few effects."""
        self.life.work(fates, lag=False, rebind=False)

    @rule()
    def crash(self) -> None:
        """Begin another life of the controller."""
        self.life.crash()

    @rule(up=st.sampled_from([True, True, False]))
    def redis_falters(self, *, up: bool) -> None:
        """Take Redis away, or bring it back."""
        self.world.redis_up = up

    @rule(seconds=st.sampled_from([2, 20, 60, 100]))
    def time_passes(self, seconds: int) -> None:
        """Let clients beat, or not, while the sweeper watches."""
        self.world.pass_time(timedelta(seconds=seconds))

    @rule(seconds=st.sampled_from([5, 95, 130]), effects=st.integers(0, 6))
    def client_is_away(self, seconds: int, effects: int) -> None:
        """Let the client be silent, long enough to be missed or not, while a worker works."""
        self.world.clients.lives = False
        self.world.pass_time(timedelta(seconds=seconds))
        self.work([Fate.ANSWERED] * effects)
        self.world.clients.lives = True
        self.world.clients.up = self.world.redis_up
        self.world.clients.beats()

    @rule(lives=st.booleans())
    def client_changes(self, *, lives: bool) -> None:
        """Let the client vanish, or come back, at any moment of a visit."""
        self.world.clients.lives = lives
        if lives:
            self.world.clients.up = self.world.redis_up
            self.world.clients.beats()

    @rule(how=st.sampled_from(["closed", "revoked", *[""] * 6]))
    def client_side_asks(self, how: str) -> None:
        """Close by a client, or revoke its tokens, once in a while."""
        self.world.clients.up = self.world.redis_up
        if how and self.world.clients.writes(**{how: True}):
            self.world.asked = True

    @precondition(lambda self: not self.life.plan)  # a claim is written within milliseconds
    @rule(how=st.sampled_from(["wiped", "saved", "saved", "restored", "restored", "restarted"]))
    def redis_forgets(self, how: str) -> None:
        """Lose all, or what came after a copy, or only the process."""
        self.world.clients.loses(how)

    @precondition(lambda self: self.world.current is not None)
    @rule(grace=st.sampled_from([0, 10, 60]))
    def grace_changes(self, grace: int) -> None:
        """Change the grace, which may be at any moment of a visit."""
        self.world.write_spec(destroy_grace_seconds=grace)

    def teardown(self) -> None:
        """When the faults stop, the silent have ended and the others are Active."""
        if hasattr(self.life, "world"):
            self.life.teardown()


TestSilence = pytest.mark.timeout(120)(Silence.TestCase)
TestSilence.settings = settings(
    max_examples=150,
    stateful_step_count=20,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
