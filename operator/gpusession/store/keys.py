"""Every key name, and the one rule on which keys of a tenant belong to a Session.

A Session's own keys are `<namespace>:<name>` and what continues it with a colon. Neither
part can hold a colon (Kubernetes names), so no Session owns a key of another.
"""

import re

DEADLINES = "gs:deadlines"
"""Sorted set: when to look at which Session next, in ms of the server's clock."""

EVENTS = "gs:events"
"""Stream: what the processes tell each other. Whoever misses one is late, never wrong."""

TICK = "gs:tick"
"""Hash: the last look of the controller, by which all know the server again."""

WINDOWS = "gs:w"
"""Prefix of the two counters of each sliding window of a rate."""

GATEWAYS = "gs:gateways"
"""Sorted set: until when which gateway's lease runs."""

ANNOUNCED = "gs:announced"
"""Sorted set: when each gateway last renewed its lease: until then it could have heard."""

NAME_PREFIX = "gs:n:"

_GLOB = re.compile(rb"[*?\[\]\\]")


def record(uid: str) -> str:
    """Name the hash that is our record of a Session, on the control side."""
    return f"gs:s:{uid}"


def tokens(uid: str) -> str:
    """Name the hash of a Session's token digests and when each expires."""
    return f"gs:t:{uid}"


def name(namespace: str, name: str) -> str:
    """Name the string that holds the uid of the Session of this name."""
    return f"{NAME_PREFIX}{namespace}/{name}"


def user(user: str) -> str:
    """Name the set of the uids of a user's Sessions."""
    return f"gs:u:{user}"


def gateway(gateway: str) -> str:
    """Name the set of the uids that are connected at a gateway."""
    return f"gs:g:{gateway}"


def bucket(name: str) -> str:
    """Name the string that holds until when a token bucket is spoken for."""
    return f"gs:b:{name}"


def is_own_key(key: str | bytes, namespace: str, name: str) -> bool:
    """Whether the Session owns this key: Session `a` owns `ns:a` and `ns:a:x`, not `ns:ab`."""
    base = _base(namespace, name)
    given = _as_bytes(key)
    return given == base or given.startswith(base + b":")


def is_own_prefix(prefix: str | bytes, namespace: str, name: str) -> bool:
    """Whether a Session may give this prefix: no shorter than its own name and colon.

    `<namespace>:<name>` itself is allowed since is_own_key bounds what it covers.
    """
    return is_own_key(prefix, namespace, name)


def scan_pattern(namespace: str, name: str) -> bytes:
    """Give a MATCH that no own key escapes; it also lets neighbours through."""
    return _GLOB.sub(rb"\\\g<0>", _base(namespace, name)) + b"*"


def _base(namespace: str, name: str) -> bytes:
    return f"{namespace}:{name}".encode()


def _as_bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key
