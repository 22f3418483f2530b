"""Every key name, and the one rule on which keys of a tenant belong to a Session.

A Session's own keys are `<namespace>:<name>` and what continues it with a colon. Neither
part can hold a colon (Kubernetes names), so no Session owns a key of another.
"""

import re

_GLOB = re.compile(rb"[*?\[\]\\]")


def record(uid: str) -> str:
    """Name the hash that is our record of a Session, on the control side."""
    return f"gs:s:{uid}"


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
