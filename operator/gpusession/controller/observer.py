"""Looks: gathers the whole situation of one Session before each decision.

Watched caches answer where presence is enough. Absence is always asked of the apiserver,
since only its own "not found" may end a Session.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from gpusession.api.cluster import Node, Pod
from gpusession.api.release import BindReport, ReleaseReport, StateReport
from gpusession.api.session import Metadata, Phase, Session
from gpusession.controller.owners import OwnerLook
from gpusession.errors import ApiUnavailable
from gpusession.kube.reader import KubeReader
from gpusession.kube.reflector import Reflector
from gpusession.rules.evidence import recorded_node
from gpusession.rules.observation import (
    ABSENT,
    UNSEEN,
    Claimed,
    Life,
    Look,
    Observation,
    Owner,
    Unreachable,
    Unscaled,
)
from gpusession.rules.owner import concerns_owner
from gpusession.rules.returning import is_cancellable

_session = msgspec.json.Decoder(Session)


@dataclass(slots=True)
class Findings:
    """What this round of work has learned from calls; gone with the round."""

    bind: BindReport | Unreachable | None = None
    release: ReleaseReport | Unreachable | None = None
    cleared: StateReport | None = None
    rebind_due: bool = False
    owned: Pod | None = None
    """The Pod whose owner matters in this round; it may be gone before the round is over."""
    scaled: bool = False
    unscaled: Unscaled | None = None
    life_due: bool = False
    """Whether somebody had cause to ask Redis about the clients."""
    claimed: Claimed | None = None
    told_would_end: bool = False


class Observer:
    """Builds an Observation; what cannot be seen is UNSEEN, never ABSENT.

    `locate` tells where a node's agent is, as the agents' Pods say; `lives` reads what Redis
    knows of the clients; `observes` whether a namespace wants to be told of expiry only.
    """

    def __init__(
        self,
        reader: KubeReader,
        *,
        pods: Reflector[Pod],
        nodes: Reflector[Node],
        locate: Callable[[str], str | None],
        lives: Callable[[Session], Awaitable[Life | Look]],
        observes: Callable[[str], bool],
    ) -> None:
        self._lives = lives
        self._observes = observes
        self._locate = locate
        self._reader = reader
        self._pods = pods
        self._nodes = nodes
        self._owners = OwnerLook(reader)

    async def look(self, session: Session, findings: Findings) -> Observation:
        """Gather everything known of one Session now."""
        over = session.status.phase is Phase.DESTROYED
        pod = UNSEEN if over else await self._pod(session)
        node = pod.spec.node_name if isinstance(pod, Pod) else None
        return Observation(
            metadata=session.metadata,
            spec=session.spec,
            pod=pod,
            agent_known=node is not None and self._locate(node) is not None,
            node=UNSEEN if over else await self._node(session),
            bind=findings.bind,
            release=findings.release,
            cleared=findings.cleared,
            rebind_due=findings.rebind_due,
            owner=UNSEEN if over else await self._owner(session, pod, findings),
            scaled=findings.scaled,
            life=await self._life(session, findings),
            claimed=findings.claimed,
            observe_only=self._observes(session.metadata.namespace),
            told_would_end=findings.told_would_end,
        )

    async def session(self, seen: Metadata) -> Session | None:
        """Read this very Session again; None when it is gone or another has its name."""
        body = await self._reader.session(seen.namespace, seen.name)
        fresh = None if body is None else _session.decode(body)
        return fresh if fresh is not None and fresh.metadata.uid == seen.uid else None

    async def _life(self, session: Session, findings: Findings) -> Life | Look | None:
        # An end that somebody asked for needs no Redis, and waits for none.
        if session.metadata.deletion_timestamp is not None:
            return None
        due = findings.life_due and session.status.phase is Phase.ACTIVE
        return await self._lives(session) if due or is_cancellable(session.status) else None

    async def _pod(self, session: Session) -> Pod | Look:
        namespace, name = session.metadata.namespace, session.spec.pod_refs[0].name
        known = self._pods.get(namespace, name)
        bound = session.status.pod_uid
        if known is not None and (bound is None or known.metadata.uid == bound):
            return known
        try:
            return await self._reader.pod(namespace, name) or ABSENT
        except ApiUnavailable:
            return UNSEEN

    async def _owner(
        self, session: Session, pod: Pod | Look, findings: Findings
    ) -> Owner | Unscaled | Look:
        if isinstance(pod, Pod) and concerns_owner(session.status, session.spec, pod):
            findings.owned = pod
        if findings.unscaled is not None or findings.owned is None:
            return findings.unscaled or UNSEEN
        return await self._owners.look(findings.owned)

    async def _node(self, session: Session) -> Node | Look:
        pod = self._pods.get(session.metadata.namespace, session.spec.pod_refs[0].name)
        name = recorded_node(session) or (pod.spec.node_name if pod else None)
        if name is None:
            return UNSEEN
        known = self._nodes.get("", name)
        uid = session.status.node_uid
        if known is not None and (uid is None or known.metadata.uid == uid):
            return known
        try:
            return await self._reader.node(name) or ABSENT
        except ApiUnavailable:
            return UNSEEN
