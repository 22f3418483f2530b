"""A Session in a model cluster: etcd with the CRD's rules, a watch that lags, a controller.

It performs the actions of `step` as the controller does, and asserts at each of them what
must never happen.
"""

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

import msgspec
from tests.support.builders import make_metadata, make_owner, make_spec
from tests.support.lifecycle_clients import Clients
from tests.support.lifecycle_cluster import UID, Cluster, Machine, Row

from gpusession.api.cluster import Node, Pod
from gpusession.api.release import COMPLETING, BindReport, ReleaseReport, StateReport, Verdict
from gpusession.api.session import (
    BIND_INTENT_ANNOTATION,
    FINALIZER,
    OVERRIDE_ANNOTATION,
    ConditionType,
    OnRelease,
    Phase,
    Reason,
    RecordState,
    Session,
    SessionStatus,
)
from gpusession.controller.sessions import SessionCache
from gpusession.rules.actions import (
    Action,
    Announce,
    Bind,
    Claim,
    ClearState,
    DeletePod,
    DeleteSession,
    DropFinalizer,
    ForgetRecord,
    Hold,
    Intent,
    OpenRecord,
    RecordStatus,
    Release,
    Reopen,
    ScaleOwner,
    TellClients,
    TellWouldEnd,
)
from gpusession.rules.conditions import holds
from gpusession.rules.evidence import ENDED_POD_PHASES, recorded_node
from gpusession.rules.expiry import heartbeat_threshold, regrace
from gpusession.rules.observation import (
    ABSENT,
    UNSEEN,
    Claimed,
    Life,
    Look,
    Observation,
    Outcome,
    Owner,
    Unreachable,
)
from gpusession.rules.owner import PATIENCE, concerns_owner
from gpusession.rules.returning import is_cancellable

TABLE = {
    None: {None, Phase.PENDING, Phase.ACTIVE, Phase.PENDING_DESTROY, Phase.DESTROYED},
    Phase.PENDING: {Phase.PENDING, Phase.ACTIVE, Phase.PENDING_DESTROY, Phase.DESTROYED},
    Phase.ACTIVE: {Phase.ACTIVE, Phase.PENDING_DESTROY},
    Phase.PENDING_DESTROY: {Phase.PENDING_DESTROY, Phase.DESTROYED},
    Phase.DESTROYED: {Phase.DESTROYED},
}
"""The phase table; the way back from PendingDestroy is open while nothing is released."""


class Lost(Exception):  # noqa: N818 - what happened to the request
    """The visit ends here: a request or its answer was lost, or the object has moved on."""


class Fate(Enum):
    """What becomes of one request."""

    ANSWERED = auto()
    UNANSWERED = auto()
    """It took effect, and nobody was told."""
    LOST = auto()
    DELAYED = auto()
    """Nobody was told, and it takes effect later."""


@dataclass
class Found:
    """What a visit has learned from calls."""

    bind: BindReport | Unreachable | None = None
    release: ReleaseReport | Unreachable | None = None
    cleared: StateReport | None = None
    rebind_due: bool = False
    owned: bool = False
    scaled: bool = False
    life_due: bool | None = None
    """Whether Redis is asked; None before the first look of a visit."""
    claimed: Claimed | None = None
    told: bool = False


class World(Cluster):
    """The cluster, and one Session in it with its controller."""

    def __init__(self, **spec: Any) -> None:
        super().__init__()
        metadata = make_metadata(held=False, intent=None, age=timedelta(), resource_version="1")
        self._looked_at = Session(metadata=metadata, spec=make_spec(**spec))
        self.current: Session | None = self._looked_at
        self.last = self._looked_at
        """As it was in etcd last, also when it is gone."""
        self.watch: deque[Session | None] = deque([self.current])
        self.cache = SessionCache()
        self.found = Found()

        self.cached_pod: Pod | None = None
        self.cold = False
        """Whether the caches of Pods and Nodes are empty."""
        self.api_up = True
        self.late: list[tuple[Machine, Bind]] = []

        self.asked = False
        self.clients = Clients(self.now)
        self.watched = self._looked_at.spec.heartbeat is not None
        self.observed = False
        self.released = False
        """Whether a release, or a Pod's deletion, was ordered since it was last Active."""
        self.silent = False
        """Whether its end was for silence."""

    def pass_time(self, time: timedelta) -> None:
        """Let time go on, for clients and Redis too."""
        self.now += time
        if self.watched:
            self.clients.up = self.redis_up
            self.clients.passes(self.last.spec, time)

    # ---- what the controller sees ----

    def deliver(self) -> None:
        """Let the watch bring its oldest event."""
        if self.watch:
            event = self.watch.popleft()
            if event is None:
                self.cache.drop(UID)
            else:
                self.cache.keep(event, watched=True)

    def relist(self) -> None:
        """Start the controller anew: nothing is remembered, everything is listed."""
        self.cache, self.found, self.cold = SessionCache(), Found(), True
        self.clients.new_controller()
        self.watch.clear()
        if self.current is not None:
            self.cache.keep(self.current)

    def look(self) -> tuple[SessionStatus, Observation] | None:
        """Observe as the controller does; None where it knows of no Session."""
        session = self.cache.get(UID)
        if session is None:
            return None
        self._looked_at = session
        over = session.status.phase is Phase.DESTROYED
        pod = UNSEEN if over else self._look_at_pod(session)
        return session.status, Observation(
            metadata=session.metadata,
            spec=session.spec,
            pod=pod,
            node=UNSEEN if over else self._look_at_node(session),
            bind=self.found.bind,
            release=self.found.release,
            cleared=self.found.cleared,
            rebind_due=self.found.rebind_due,
            owner=UNSEEN if over else self._look_at_owner(session, pod),
            scaled=self.found.scaled,
            life=self._look_at_clients(session),
            claimed=self.found.claimed,
            observe_only=self.observed,
            told_would_end=self.found.told,
        )

    def _look_at_clients(self, session: Session) -> Life | Look | None:
        if self.found.life_due is None:
            self.found.life_due, self.clients.suspected = self.clients.suspected, False
        if not self.watched or session.metadata.deletion_timestamp is not None:
            return None
        due = self.found.life_due and session.status.phase is Phase.ACTIVE
        looks = due or is_cancellable(session.status)
        return self.clients.look(session.spec) if looks else None

    def _look_at_pod(self, session: Session) -> Pod | Look:
        bound, known = session.status.pod_uid, self.cached_pod
        if known is not None and not self.cold and bound in (None, known.metadata.uid):
            return known
        return (self.pod or ABSENT) if self.api_up else UNSEEN

    def _look_at_node(self, session: Session) -> Node | Look:
        name = recorded_node(session) or (self.cached_pod and self.cached_pod.spec.node_name)
        if name is None:
            return UNSEEN
        node = self.nodes.get(name)
        uid = session.status.node_uid
        if node is not None and not self.cold and uid in (None, node.metadata.uid):
            return node
        return (node or ABSENT) if self.api_up else UNSEEN

    def _look_at_owner(self, session: Session, pod: Pod | Look) -> Owner | Look:
        if isinstance(pod, Pod) and concerns_owner(session.status, session.spec, pod):
            self.found.owned = True
        if not self.found.owned or not self.api_up:
            return UNSEEN
        version = str(self.owner_version)
        return Owner(make_owner(), version, self.replicas, others=int(self.rival))

    # ---- what the controller does ----

    def perform(  # noqa: C901 - one line per action
        self, action: Action, after: SessionStatus, fate: Fate
    ) -> None:
        """Carry out one action; raises Lost where the visit cannot go on."""
        self.pass_time(timedelta(seconds=1))
        session = self.cache.get(UID) or self._looked_at
        match action:
            case ScaleOwner():
                self._scale_owner(action, fate)
            case Hold() | RecordStatus() | DropFinalizer() | DeletePod() | DeleteSession():
                self._request(action, session, after, fate)
            case Bind():
                self.found.rebind_due = False
                self.found.bind = self._call_bind(action, fate)
            case Release():
                self._assert_may_release(action.intent)
                self.found.release = self._call_release(action, session, fate)
            case ClearState():
                self.found.cleared = self.clear_state()
            case TellWouldEnd():
                assert self.observed
                self.found.told = True
            case Announce():
                pass
            case _ if self.watched and fate in (Fate.ANSWERED, Fate.UNANSWERED):
                self._write_record(action, session, fate)
            case Claim():
                self.found.claimed = Claimed(action.reason, Outcome.UNKNOWN)
            case OpenRecord() | Reopen():
                self.found.life_due = False

    def _write_record(self, action: Action, session: Session, fate: Fate) -> None:
        clients = self.clients
        match action:
            case Claim():
                outcome = clients.claims(action)
                outcome = outcome if fate is Fate.ANSWERED else Outcome.UNKNOWN
                final = action.stage is RecordState.RELEASING
                self.found.claimed = Claimed(action.reason, outcome, final=final)
            case OpenRecord():
                self.found.life_due = False
                if clients.opens(session.spec) and is_cancellable(session.status):
                    grace = regrace(session.spec)
                    reason = Reason(session.status.reason)
                    clients.claims(Claim(RecordState.PENDING, reason, grace, None))
            case Reopen():
                self.found.life_due = False
                clients.reopens()
            case TellClients():
                clients.marks()
            case ForgetRecord():
                clients.forgets()

    def _request(self, action: Action, session: Session, after: SessionStatus, fate: Fate) -> None:
        if fate in (Fate.LOST, Fate.DELAYED):
            raise Lost
        match action:
            case Hold(intent):
                self._hold(session, intent)
                self.found.bind = self.found.release = None
            case RecordStatus():
                self._record(session, after)
                self.found.claimed = None
            case DropFinalizer():
                self._drop_finalizer(session)
            case DeletePod():
                self._delete_pod(action)
        if fate is Fate.UNANSWERED:
            raise Lost
        if self.current is not None:
            self.cache.keep(self.current)

    def _hold(self, seen: Session, intent: Intent | None) -> None:
        current = self._same(seen)
        adds = FINALIZER not in seen.metadata.finalizers
        blank = (adds and not seen.metadata.finalizers) or not seen.metadata.annotations
        moved = current.metadata.resource_version != seen.metadata.resource_version
        if (blank and moved) or (adds and current.metadata.deletion_timestamp):
            self._refuse()
        annotations = dict(current.metadata.annotations)
        if intent is not None:
            annotations[BIND_INTENT_ANNOTATION] = str(intent)
        finalizers = tuple({*current.metadata.finalizers, FINALIZER})
        self.write_metadata(finalizers=finalizers, annotations=annotations)

    def _record(self, seen: Session, after: SessionStatus) -> None:
        current = self._same(seen)
        back = after.phase is Phase.ACTIVE and is_cancellable(current.status)
        if after.phase not in TABLE[current.status.phase] and not back:
            assert seen != current, f"{current.status.phase} -> {after.phase}"
            self._refuse()
        self._assert_may_end(current.status, after)
        assert not (back and self.released), "taken back after a release"
        if after.phase is Phase.ACTIVE:
            self.released = False
        if after.phase is Phase.DESTROYED and current.status.phase is not Phase.DESTROYED:
            self._assert_proven(current, after)
        merged = msgspec.to_builtins(current.status) | msgspec.to_builtins(after)
        self._write(msgspec.structs.replace(current, status=msgspec.convert(merged, SessionStatus)))

    def _drop_finalizer(self, seen: Session) -> None:
        current = self._same(seen)
        assert current.status.phase is Phase.DESTROYED
        left = tuple(f for f in current.metadata.finalizers if f != FINALIZER)
        self.write_metadata(finalizers=left)

    def _delete_pod(self, action: DeletePod) -> None:
        assert self.current is not None
        self._assert_may_release(Intent(self.current.status.node_name or "", action.uid))
        assert self.current.status.active_since, "a Pod that was never ours was deleted"
        assert self.current.status.pod_uid == action.uid, "another Pod was deleted"
        assert self.current.spec.pod_refs[0].on_release is not OnRelease.NONE
        self._assert_may_recreate(self.current)
        if self.pod is not None and self.pod.metadata.uid == action.uid and self.pod.use:
            self.delete_pod(action.grace)

    def _scale_owner(self, action: ScaleOwner, fate: Fate) -> None:
        current = self.current
        assert current is not None
        assert current.spec.pod_refs[0].on_release is OnRelease.SCALE_OWNER
        assert current.status.phase is Phase.PENDING_DESTROY, "scaled before the end was written"
        same = action.owner.resource_version == str(self.owner_version)
        taken = fate in (Fate.ANSWERED, Fate.UNANSWERED) and same
        if taken:
            assert self.replicas == 1, "a second replica was taken away"
            assert not self.rival, "somebody else's Pod was scaled away"
            self.scale(0)
            self.may_recreate = True  # whoever scales it up again has their reason
        if fate is Fate.ANSWERED and taken:
            self.found.scaled = True
        elif not action.last_try:
            raise Lost

    def _same(self, seen: Session) -> Session:
        if self.current is None:
            self.cache.drop(UID)
            raise Lost
        assert seen.metadata.uid == self.current.metadata.uid
        return self.current

    def _refuse(self) -> None:
        if self.current is not None:
            self.cache.keep(self.current)
        raise Lost

    def _call_bind(self, action: Bind, fate: Fate) -> BindReport | Unreachable:
        assert self.current is not None
        assert FINALIZER in self.current.metadata.finalizers
        assert self.current.metadata.bind_intent == str(action.intent)
        machine = self.machines[action.intent.node]
        if fate is Fate.DELAYED:
            self.late.append((machine, action))
        if fate in (Fate.LOST, Fate.DELAYED) or not (machine.on and machine.agent_up):
            return Unreachable("no answer")
        report = self.bind(machine, UID, action.intent)
        return report if fate is Fate.ANSWERED else Unreachable("no answer")

    def _call_release(
        self, action: Release, session: Session, fate: Fate
    ) -> ReleaseReport | Unreachable:
        machine = self.machines[action.intent.node]
        if fate in (Fate.LOST, Fate.DELAYED) or not (machine.on and machine.agent_up):
            return Unreachable("no answer")
        report = self.release(
            machine,
            action,
            known=session.status.seen_holding,
            was_active=session.status.active_since is not None,
        )
        return report if fate is Fate.ANSWERED else Unreachable("no answer")

    # ---- everybody else ----

    def write_metadata(self, **fields: Any) -> None:
        """Write the Session's metadata, as anybody may."""
        assert self.current is not None
        metadata = msgspec.structs.replace(self.current.metadata, **fields)
        self._write(msgspec.structs.replace(self.current, metadata=metadata))

    def write_spec(self, **fields: Any) -> None:
        """Write the Session's spec, as its user may."""
        assert self.current is not None
        metadata, spec = self.current.metadata, self.current.spec
        metadata = msgspec.structs.replace(metadata, generation=metadata.generation + 1)
        spec = msgspec.structs.replace(spec, **fields)
        self._write(msgspec.structs.replace(self.current, metadata=metadata, spec=spec))

    def _write(self, session: Session) -> None:
        version = str(int(session.metadata.resource_version) + 1)
        metadata = msgspec.structs.replace(session.metadata, resource_version=version)
        gone = metadata.deletion_timestamp is not None and not metadata.finalizers
        self.last = msgspec.structs.replace(session, metadata=metadata)
        self.current = None if gone else self.last
        self.watch.append(self.current)

    def override(self) -> None:
        """Have a human give up."""
        assert self.current is not None
        self.write_metadata(
            annotations=self.current.metadata.annotations | {OVERRIDE_ANNOTATION: "ada"}
        )

    # ---- what must never be ----

    @property
    def waived(self) -> bool:
        """Whether it ended on a lost node or on a human's word."""
        release = self.last.status.release
        return release is not None and release.verdict in (Verdict.NODE_GONE, Verdict.OVERRIDDEN)

    def _assert_may_end(self, before: SessionStatus, after: SessionStatus) -> None:
        begins = before.phase is Phase.ACTIVE and after.phase is Phase.PENDING_DESTROY
        commits = is_cancellable(before) and not is_cancellable(after)
        if not begins and not (commits and after.phase is Phase.PENDING_DESTROY):
            return
        if self.asked or {after.pod_uid, after.node_name} & self.troubled:
            return
        assert after.reason == Reason.HEARTBEAT_LOST, "no reason"
        assert not self.observed, "ended in observe mode"
        if is_cancellable(after):
            return  # whoever returned between claim and write takes it back
        silence = self.now - self.clients.heard
        assert silence >= heartbeat_threshold(self.last.spec), "the living were called silent"
        self.silent = True

    def _assert_may_release(self, intent: Intent) -> None:
        fine = not ({intent.pod_uid, intent.node} & self.troubled)
        assert self.asked or self.silent or not fine, "the living were killed"
        assert self.current is not None
        self.released = True
        assert not is_cancellable(self.current.status), "released within the grace"
        replaced = intent.pod_uid in self.troubled and not self.current.status.active_since
        durable = self.current.status.phase in (Phase.PENDING_DESTROY, Phase.DESTROYED)
        assert durable or replaced, "released before the end was written"

    def _assert_may_recreate(self, current: Session) -> None:
        begun = datetime.fromisoformat(current.status.pending_destroy_since or "")
        late = self.now - begun >= PATIENCE
        ended = self.pod is not None and self.pod.status.phase in ENDED_POD_PHASES
        fine = not self.owned or self.may_recreate or self.rival or late or ended
        assert fine, "the Pod was deleted before its owner was scaled"

    def _assert_proven(self, current: Session, after: SessionStatus) -> None:
        assert holds(after, ConditionType.GPU_RELEASED)
        assert holds(after, ConditionType.STATE_CLEARED)
        assert after.release is not None
        assert after.release.verdict in COMPLETING
        if after.release.verdict == Verdict.OVERRIDDEN:
            assert current.metadata.override_by
        elif after.release.verdict == Verdict.NODE_GONE:
            assert after.node_name in self.troubled
        elif after.release.verdict == Verdict.NOT_BOUND:
            assert not self.living_rows
            assert current.spec.state is None or current.metadata.override_by or not self.keys
        else:
            assert current.metadata.override_by or not self.keys

    @property
    def living_rows(self) -> list[Row]:
        """Every row of the Session that an agent still answers for."""
        rows = (machine.rows.get(UID) for machine in self.machines.values() if machine.on)
        return [row for row in rows if row is not None and not row.done]
