"""Where all triggers end: each only makes a key ready. There is no second path to an end."""

from gpusession.api.cluster import Node, Pod
from gpusession.api.session import Phase, Session
from gpusession.controller.queue import DestroyQueue, Priority
from gpusession.controller.sessions import SessionCache
from gpusession.metrics import WATCH_EVENTS


class Intake:
    """Takes in news of Sessions, Pods and Nodes, and suspicions about clients."""

    def __init__(self, sessions: SessionCache, queue: DestroyQueue) -> None:
        self._sessions = sessions
        self._queue = queue
        self._suspects: set[str] = set()

    def watched(self, session: Session) -> None:
        """Take in what the watch says of a Session."""
        WATCH_EVENTS.inc()
        if self._sessions.keep(session, watched=True):
            self.wake(session.metadata.uid)

    def listed(self, session: Session) -> None:
        """Take in what the sweep found, in case the watch has missed it."""
        if self._sessions.keep(session):
            self.wake(session.metadata.uid, Priority.RESYNC)

    def gone(self, uid: str) -> None:
        """Forget a Session that no longer exists, and answers about it still on their way."""
        self._sessions.bury(uid)
        self._queue.forget(uid)
        self._suspects.discard(uid)

    def pod_changed(self, pod: Pod, _gone: bool) -> None:
        """Look at the Sessions of a Pod that came, changed or went."""
        for uid in self._sessions.of_pod(pod.metadata.namespace, pod.metadata.name):
            self.wake(uid)

    def node_changed(self, node: Node, _gone: bool) -> None:
        """Look at the Sessions of a Node that came, changed or went."""
        for session in self._sessions:
            if session.status.node_name == node.metadata.name:
                self.wake(session.metadata.uid, Priority.RESYNC)

    def agent_changed(self, node: str) -> None:
        """Look at the Sessions that may have waited for this node's agent."""
        for session in self._sessions:
            status = session.status
            if status.phase is Phase.PENDING or status.node_name == node:
                self.wake(session.metadata.uid, Priority.RESYNC)

    def wake(self, uid: str, priority: Priority = Priority.EXPLICIT) -> None:
        """Make a Session's key ready."""
        self._queue.add(uid, priority)

    def suspect(self, uid: str, priority: Priority) -> None:
        """Have the next visit ask Redis about the clients of a Session that is known."""
        if uid in self._sessions:
            self._suspects.add(uid)
            self.wake(uid, priority)

    def suspect_again(self, uid: str) -> None:
        """Put back the suspicion of a visit that failed, and that comes again by itself."""
        if uid in self._sessions:
            self._suspects.add(uid)

    def take_suspicion(self, uid: str) -> bool:
        """Tell whether there was one; the visit that asks sees to it."""
        suspected = uid in self._suspects
        self._suspects.discard(uid)
        return suspected
