"""The newest known state of every Session, fed by the watch, the sweep and our own writes.

A watch event may be older than the answer to our own last write, so a version only ever
moves forward here (resourceVersion is ordered per resource: Kubernetes KEP-5504).
"""

from collections import defaultdict
from collections.abc import Iterator

from gpusession.api.session import Session


class SessionCache:
    """Sessions by uid, with the names of their Pods as a second way in."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._watched: dict[str, int] = {}
        self._buried: set[str] = set()
        self._by_pod: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def get(self, uid: str) -> Session | None:
        """Return the newest known state, or None for one that is gone."""
        return self._sessions.get(uid)

    def __iter__(self) -> Iterator[Session]:
        """Walk over everything known."""
        return iter(tuple(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, uid: str) -> bool:
        return uid in self._sessions

    def keep(self, session: Session, *, watched: bool = False) -> bool:
        """Take in a state unless a newer one is known; True where it was news."""
        uid, version = session.metadata.uid, _version(session)
        if uid in self._buried:
            return False
        if watched:
            self._watched[uid] = max(version, self._watched.get(uid, 0))
        known = self._sessions.get(uid)
        if known is not None and _version(known) >= version:
            return False
        self._sessions[uid] = session
        for name in _pod_names(session):
            self._by_pod[session.metadata.namespace, name].add(uid)
        return True

    def drop(self, uid: str) -> Session | None:
        """Forget one that is gone; returns what was known of it."""
        self._buried.discard(uid)
        session = self._sessions.pop(uid, None)
        self._watched.pop(uid, None)
        if session is not None:
            for name in _pod_names(session):
                self._by_pod[session.metadata.namespace, name].discard(uid)
                if not self._by_pod[session.metadata.namespace, name]:
                    del self._by_pod[session.metadata.namespace, name]
        return session

    def bury(self, uid: str) -> None:
        """Forget one that our own write has let go, and the events still on their way.

        The watch says DELETED last, which ends the memory of it; `exhume` ends the rest.
        """
        self.drop(uid)
        self._buried.add(uid)

    def exhume(self, *, listed: set[str]) -> None:
        """Forget the buried that a later list no longer shows."""
        self._buried &= listed

    def of_pod(self, namespace: str, name: str) -> frozenset[str]:
        """Return the uids of the Sessions that name this Pod."""
        return frozenset(self._by_pod.get((namespace, name), ()))

    def is_ahead_of_watch(self, uid: str) -> bool:
        """Tell whether a state is known that the watch has not delivered."""
        session = self._sessions.get(uid)
        return session is not None and self._watched.get(uid, 0) < _version(session)


def _version(session: Session) -> int:
    return int(session.metadata.resource_version or 0)


def _pod_names(session: Session) -> tuple[str, ...]:
    return tuple(ref.name for ref in session.spec.pod_refs)
