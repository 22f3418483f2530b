"""Which keys belong to a Session, and under which names our own are kept."""

from fnmatch import fnmatchcase

import pytest

from gpusession.store import keys

OWNERSHIP = [
    ("ns:a", True),
    ("ns:a:", True),
    ("ns:a:chat:1", True),
    (b"ns:a:\xff\x00", True),
    ("ns:ab", False),
    ("ns:ab:chat:1", False),
    ("ns:a*x", False),
    ("ns:a.b:chat", False),
    ("ns:A:chat", False),
    ("ns:", False),
    ("ns", False),
    ("", False),
    ("other:a:chat", False),
    (" ns:a", False),
    ("*", False),
    ("ns:*", False),
    ("x:ns:a:chat", False),
]


@pytest.mark.parametrize(("key", "own"), OWNERSHIP, ids=repr)
def test_session_owns_its_name_and_what_continues_it_with_a_colon(
    key: str | bytes, *, own: bool
) -> None:
    """Session `a` never owns a key of Session `ab` or of another namespace."""
    assert keys.is_own_key(key, "ns", "a") is own


@pytest.mark.parametrize(
    ("prefix", "own"),
    [("ns:a", True), ("ns:a:", True), ("ns:a:ch", True), ("ns:ab", False), ("", False)],
)
def test_prefix_may_not_be_shorter_than_the_own_name(prefix: str, *, own: bool) -> None:
    """A prefix that could lead to others' keys is not the Session's own."""
    assert keys.is_own_prefix(prefix, "ns", "a") is own


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("a", b"ns:a*"),
        ("a-b.c", b"ns:a-b.c*"),
        ("a*", rb"ns:a\**"),
        ("a?[x]", rb"ns:a\?\[x\]*"),
        ("a\\", rb"ns:a\\*"),
    ],
)
def test_scan_pattern_takes_the_name_literally(name: str, pattern: bytes) -> None:
    """Glob characters of a name match only themselves."""
    assert keys.scan_pattern("ns", name) == pattern


@pytest.mark.parametrize("key", [key for key, own in OWNERSHIP if own and isinstance(key, str)])
def test_scan_pattern_finds_every_own_key(key: str) -> None:
    """No key that the Session owns escapes the server's filter."""
    assert fnmatchcase(key, keys.scan_pattern("ns", "a").decode())


def test_record_is_named_after_the_uid() -> None:
    """Two incarnations of one name have different records."""
    assert keys.record("0a1b") == "gs:s:0a1b"


def test_own_names_never_meet() -> None:
    """Whatever a user or a gateway is called, no name of one kind is one of another."""
    odd = ("s:0a1b", "deadlines", "", "t:0a1b")
    names = [keys.DEADLINES, keys.EVENTS, keys.TICK, keys.GATEWAYS]
    for kind in (keys.record, keys.tokens, keys.user, keys.gateway):
        names += [kind(text) for text in odd]
    names += [keys.name(text, "a") for text in odd]

    assert len(set(names)) == len(names)
    assert all(name.startswith("gs:") for name in names)
