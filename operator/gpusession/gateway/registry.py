"""All open connections of this gateway, by Session; several clients may share one."""

from collections.abc import Iterator

from gpusession.api.frames import CloseCode
from gpusession.gateway.connection import Connection
from gpusession.metrics import GATEWAY_CONNECTIONS


class ConnectionRegistry:
    """Who is connected."""

    def __init__(self) -> None:
        self._of_uid: dict[str, list[Connection]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Connection]:
        """Give every connection that is open now; others may come or go meanwhile."""
        return iter([one for some in self._of_uid.values() for one in some])

    def of(self, uid: str) -> tuple[Connection, ...]:
        """Give a Session's connections."""
        return tuple(self._of_uid.get(uid, ()))

    def add(self, connection: Connection) -> None:
        """Take in a connection whose token was good."""
        self._of_uid.setdefault(connection.who.uid, []).append(connection)
        self._count += 1
        GATEWAY_CONNECTIONS.set(self._count)

    def remove(self, connection: Connection) -> None:
        """Let go of one that has ended."""
        some = self._of_uid[connection.who.uid]
        some.remove(connection)
        if not some:
            del self._of_uid[connection.who.uid]
        self._count -= 1
        GATEWAY_CONNECTIONS.set(self._count)

    def shut_all(self, code: CloseCode, message: str) -> None:
        """Close every connection."""
        for connection in self:
            connection.shut(code, message)
