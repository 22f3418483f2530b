"""Under any order of faults: nothing ends by mistake, nothing ends unproven, all ends end.

Hypothesis breaks a small model cluster between every two effects: crashes, lost and late
requests, a lagging watch, dying Pods, Nodes, agents and Redis. Deterministic, so that a
failure in CI is the same failure here.
"""

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.support.builders import LIMITS, kinds
from tests.support.lifecycle_cluster import NODES, Row
from tests.support.lifecycle_world import Fate, Found, Lost, World

from gpusession.api.session import (
    FINALIZER,
    USE_LABEL,
    Heartbeat,
    OnRelease,
    Phase,
    PodRef,
    Session,
    SessionStatus,
    StateKeys,
)
from gpusession.rules.actions import Action, Intent, Requeue, TellWouldEnd
from gpusession.rules.evidence import ENDED_POD_PHASES
from gpusession.rules.lifecycle import step

ROUNDS = 60
"""Decisions within which a healthy world must come to rest: four times the longest way."""

BEATING = Heartbeat(period_seconds=30, failure_threshold=3, initial_delay_seconds=0)

STATE = StateKeys(keys=("lab:chat",))

STARTS = [
    [],
    [Fate.ANSWERED],
    [Fate.ANSWERED] * 2,
    [Fate.ANSWERED, Fate.UNANSWERED],
    [Fate.ANSWERED, Fate.DELAYED],
    *[[Fate.ANSWERED] * 4] * 4,
]
"""Fates of Hold, Bind, RecordStatus, OpenRecord: nothing begun, bind in doubt, Active."""

POD_CHANGES = ("fail", "delete", "finish", "force", "withdraw", "exit", *["restart"] * 6)
OTHER = "s-other"
LOSSES = ("removed", "tainted", "replaced")

FATES = st.sampled_from([*[Fate.ANSWERED] * 5, Fate.UNANSWERED, Fate.LOST, Fate.DELAYED])


class Lifecycle(RuleBasedStateMachine):
    """One Session, one controller, and everything that may go wrong around them."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.after = SessionStatus()
        self.plan: list[Action] = []

    @initialize(
        on_release=st.sampled_from(list(OnRelease)),
        start=st.sampled_from(STARTS),
        asked=st.booleans(),
        crashed=st.sampled_from(["", "", "crashed", "crashed without api"]),
        watch=st.sampled_from(["", "", *["clients"] * 3, "observed"]),
        grace=st.sampled_from([0, 10]),
    )
    def begin(
        self,
        on_release: OnRelease,
        start: list[Fate],
        *,
        asked: bool,
        crashed: str,
        watch: str,
        grace: int,
    ) -> None:
        """Start somewhere on the way to Active, so that every part of a life is tried."""
        self.world = World(
            pod_refs=(PodRef(name="chat", on_release=on_release),),
            state=STATE if on_release is OnRelease.DELETE_POD else None,
            heartbeat=BEATING if watch else None,
            destroy_grace_seconds=grace,
        )
        self.world.observed = watch == "observed"
        self.world.clients.lives = bool(watch)
        self.world.owned = on_release is OnRelease.SCALE_OWNER
        self.world.create_pod("node-a")
        self.work(start, lag=False, rebind=False)
        if asked and not watch:
            self.user_acts("delete")
        if crashed:
            self.crash()
            self.world.api_up = crashed == "crashed"

    # ---- the controller ----

    @rule(fates=st.lists(FATES, min_size=1, max_size=8), lag=st.booleans(), rebind=st.booleans())
    def work(self, fates: list[Fate], *, lag: bool, rebind: bool) -> None:
        """Go on with the visit for a few effects; what is left waits for the next rule."""
        if rebind and not self.plan:
            self.world.found.rebind_due = True
        if not lag:
            self.watch_catches_up(len(self.world.watch))
            self.pod_watch_catches_up()
        for fate in fates:
            if not self._one_effect(fate):
                return

    @rule(effects=st.integers(1, 4))
    def work_undisturbed(self, effects: int) -> None:
        """Go on with every answer and all news."""
        self.work([Fate.ANSWERED] * effects, lag=False, rebind=False)

    @rule()
    def crash(self) -> None:
        """Lose the visit and everything that was learned, wherever it stands."""
        self.plan = []
        self.world.relist()

    @rule(events=st.integers(1, 4))
    def watch_catches_up(self, events: int) -> None:
        """Bring some of the news, however late."""
        for _ in range(events):
            self.world.deliver()

    @rule()
    def pod_watch_catches_up(self) -> None:
        """Bring the news of Pods and Nodes, where the apiserver can be asked."""
        if not self.world.api_up:
            return
        self.world.cold = False
        self.world.cached_pod = self.world.pod

    def _one_effect(self, fate: Fate) -> bool:
        if not self.plan:
            looked = self.world.look()
            if looked is None:
                return False
            self.after, actions = step(*looked, now=self.world.now, limits=LIMITS)
            self.plan = list(actions)
        action = self.plan.pop(0) if self.plan else Requeue()
        if isinstance(action, Requeue):
            self._end_visit()
            return False
        try:
            self.world.perform(action, self.after, fate)
        except Lost:
            self.world.clients.suspected |= self.world.found.life_due is True
            self._end_visit()
            return False
        return True

    def _end_visit(self) -> None:
        self.plan = []
        self.world.found = Found()

    # ---- the world ----

    @precondition(lambda self: self.world.current is not None)
    @rule(how=st.sampled_from(["delete", "close", "override", *["touch"] * 5]))
    def user_acts(self, how: str) -> None:
        """Delete, close, change a setting, or give up on the evidence."""
        if how == "touch":
            self.world.write_spec(ttl_seconds_after_destroyed=None)
        elif how == "override" and self.world.asked:
            self.world.override()
        elif how == "close":
            self.world.asked = True
            self.world.write_spec(desired_phase=Phase.DESTROYED)
        elif how == "delete":
            self.world.asked = True
            self.world.write_metadata(deletion_timestamp="2026-01-02T03:04:05Z")

    @precondition(lambda self: self.world.pod is None)
    @rule(node=st.sampled_from(NODES))
    def pod_comes(self, node: str) -> None:
        """Create the Pod, or the one that replaces it."""
        self.world.create_pod(node)

    @rule(node=st.sampled_from(NODES))
    def pod_is_replaced(self, node: str) -> None:
        """Have an owner make another Pod of the same name."""
        self.world.end_processes()
        self.world.remove_pod()
        self.world.create_pod(node)

    @precondition(lambda self: self.world.pod is not None)
    @rule(how=st.sampled_from(POD_CHANGES))
    def pod_changes(self, how: str) -> None:
        """Do to the Pod whatever users, kubelet and others do."""
        world = self.world
        if how in ("fail", "finish", "exit"):
            world.end_processes()
        match how:
            case "fail":
                world.change_pod(phase="Failed")
            case "delete":
                world.delete_pod(timedelta(seconds=30))
            case "finish" | "force":
                world.remove_pod()
            case "withdraw":
                world.change_pod(labels={})
            case "restart":
                world.kubelet_restarts()

    @precondition(lambda self: self.world.owned)
    @rule(how=st.sampled_from(["acts", "acts", "scaled up", "touched", "rival"]))
    def owner_changes(self, how: str) -> None:
        """Let the Pod's owner do its work, be scaled up by GitOps, or get another Pod."""
        match how:
            case "acts":
                self.world.owner_acts("node-b")
            case "scaled up":
                self.world.scale(1)
            case "touched":
                self.world.scale(self.world.replicas)
            case "rival":
                self.world.rival = not self.world.rival
                self.world.may_recreate = True
                self.world.scale(self.world.replicas)

    @precondition(lambda self: self.world.pod is not None)
    @rule()
    def other_session_takes_the_pod(self) -> None:
        """Bind the Pod to somebody else, if it is free."""
        pod = self.world.pod
        assert pod is not None
        node = pod.spec.node_name or ""
        self.world.bind(self.world.machines[node], OTHER, Intent(node, pod.metadata.uid))

    @rule(node=st.sampled_from(NODES), how=st.sampled_from(["", "", "", *LOSSES]))
    def node_is_lost(self, node: str, how: str) -> None:
        """Switch a machine off, once in a while."""
        if how:
            self.world.lose_node(node, how=how)

    @rule(fault=st.sampled_from(["none", "agent", "blind", "redis", "api", "api"]))
    def something_falters(self, fault: str) -> None:
        """Take one thing away, and bring the others back."""
        for machine in self.world.machines.values():
            machine.agent_up, machine.blind = fault != "agent", fault == "blind"
        self.world.redis_up, self.world.api_up = fault != "redis", fault != "api"

    @precondition(lambda self: self.world.late)
    @rule()
    def late_bind_arrives(self) -> None:
        """Let a bind take effect that everybody has given up."""
        machine, action = self.world.late.pop(0)
        if machine.on:
            self.world.bind(machine, "s-1", action.intent)

    # ---- what must always hold ----

    @invariant()
    def finalizer_guards_every_living_row(self) -> None:
        """While an agent answers for the Session, the Session is there."""
        if self.world.living_rows and not self.world.waived:
            assert self.world.current is not None
            assert FINALIZER in self.world.current.metadata.finalizers

    @invariant()
    def living_row_is_of_the_pod_that_is_recorded(self) -> None:
        """Whatever an agent has claimed, the Session knows where to look for it."""
        session = self.world.current
        if session is None or self.world.waived:
            return
        intent = Intent.parse(session.metadata.bind_intent)
        known = {session.status.pod_uid, intent and intent.pod_uid}
        assert {row.pod_uid for row in self.world.living_rows} <= known

    @invariant()
    def destroyed_memory_stays_free(self) -> None:
        """Let nothing that was destroyed come back behind its verdict."""
        session, pod = self.world.last, self.world.pod
        if session.status.phase is not Phase.DESTROYED or self.world.waived:
            return
        if session.spec.pod_refs[0].on_release is OnRelease.NONE or _withdrew(pod, session):
            return
        if session.status.active_since is not None:
            machine = self.world.machines[session.status.node_name or ""]
            assert session.status.pod_uid not in machine.holding

    def teardown(self) -> None:
        """When the faults stop, everything comes to its one right end."""
        if not hasattr(self, "world"):
            return
        self._heal()
        for _ in range(ROUNDS):
            self.world.pass_time(timedelta(seconds=10))
            self.world.deliver()
            self._one_effect(Fate.ANSWERED)
            self._let_time_end_pods()
            self.world.kubelet_restarts()
        self.destroyed_memory_stays_free()
        self._assert_at_rest()

    def _heal(self) -> None:
        while self.world.late:
            self.late_bind_arrives()
        self._end_visit()
        self.world.redis_up = self.world.api_up = True
        for machine in self.world.machines.values():
            machine.agent_up, machine.blind = True, False
        while self.world.watch:
            self.world.deliver()
        pod = self.world.pod
        if pod is not None and not pod.use:
            self.world.end_processes()  # its owner ends what only the owner may end
            self.world.remove_pod()
        self.pod_watch_catches_up()

    def _let_time_end_pods(self) -> None:
        pod = self.world.pod
        if pod is not None and pod.metadata.deletion_timestamp is not None:
            self.world.end_processes()
            self.world.remove_pod()
        self.world.cached_pod = self.world.pod

    def _assert_at_rest(self) -> None:
        self._end_visit()
        session, world = self.world.current, self.world
        if session is None:
            assert world.asked
            return
        looked = world.look()
        assert looked is not None
        effects = set(kinds(step(*looked, now=world.now, limits=LIMITS)[1]))
        match session.status.phase:
            case Phase.DESTROYED:
                assert world.asked or world.troubled or world.silent
                assert FINALIZER not in session.metadata.finalizers
                assert effects == set()
            case Phase.ACTIVE:
                assert not world.asked
                assert self._pod_is_there(session)
                assert world.clients.lives or world.observed or not world.watched
                assert effects <= ({TellWouldEnd} if world.observed else set())
            case phase:
                assert phase is not Phase.PENDING_DESTROY
                assert not world.asked
                assert not self._could_be_bound()

    def _pod_is_there(self, session: Session) -> bool:
        pod = self.world.pod
        there = pod is not None and pod.metadata.uid == session.status.pod_uid
        return there and pod.status.phase not in ENDED_POD_PHASES

    def _could_be_bound(self) -> bool:
        pod = self.world.pod
        if pod is None or not self.world.is_bindable:
            return False
        machine = self.world.machines[pod.spec.node_name or ""]
        taken: Row | None = machine.rows.get(OTHER)
        return machine.on and (taken is None or taken.pod_uid != pod.metadata.uid)


def _withdrew(pod: object, session: Session) -> bool:
    labels = getattr(getattr(pod, "metadata", None), "labels", {USE_LABEL: ""})
    return USE_LABEL not in labels and session.status.pod_uid is not None


TestLifecycle = pytest.mark.timeout(120)(Lifecycle.TestCase)
TestLifecycle.settings = settings(
    max_examples=250,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
