"""The cache of Sessions moves forward only, whoever brings the news."""

import msgspec
import pytest
from tests.support.builders import make_metadata, make_session

from gpusession.api.session import Phase, PodRef, Session
from gpusession.controller.sessions import SessionCache


def session(
    version: int, *, uid: str = "s-1", pod: str = "chat", phase: Phase = Phase.ACTIVE
) -> Session:
    """Give one version of a Session."""
    metadata = make_metadata(uid=uid, resource_version=str(version))
    return make_session(phase, metadata=metadata, pod_refs=(PodRef(name=pod),))


@pytest.fixture
def cache() -> SessionCache:
    """Give a cache that knows version 10."""
    cache = SessionCache()
    cache.keep(session(10), watched=True)
    return cache


@pytest.mark.parametrize(
    ("version", "news"), [(9, False), (10, False), (11, True)], ids=["older", "same", "newer"]
)
@pytest.mark.parametrize("watched", [True, False], ids=["watch", "answer"])
def test_only_a_newer_version_is_news(
    cache: SessionCache, version: int, *, news: bool, watched: bool
) -> None:
    """A late watch event never undoes the answer to our own write."""
    assert cache.keep(session(version), watched=watched) is news

    known = cache.get("s-1")
    assert known is not None
    assert known.metadata.resource_version == str(max(10, version))


def test_versions_are_numbers_and_not_text(cache: SessionCache) -> None:
    """9 is older than 10, and 100 is newer."""
    assert cache.keep(session(100))
    assert not cache.keep(session(9))


def test_dropped_session_is_returned_and_forgotten(cache: SessionCache) -> None:
    """What was known of it is the caller's to use; nothing of it stays."""
    assert cache.drop("s-1") == session(10)

    assert (cache.get("s-1"), len(cache), "s-1" in cache) == (None, 0, False)
    assert cache.of_pod("lab", "chat") == frozenset()


def test_dropping_a_stranger_changes_nothing(cache: SessionCache) -> None:
    """A second DELETED is no error."""
    assert cache.drop("s-2") is None
    assert len(cache) == 1


def test_pod_leads_to_every_session_that_names_it(cache: SessionCache) -> None:
    """Also to the second one, which will be told PodInUse."""
    cache.keep(session(11, uid="s-2"))
    cache.keep(session(12, uid="s-3", pod="other"))

    assert cache.of_pod("lab", "chat") == {"s-1", "s-2"}
    assert cache.of_pod("elsewhere", "chat") == frozenset()


def test_one_of_two_sessions_of_a_pod_may_go(cache: SessionCache) -> None:
    """The other is still found."""
    cache.keep(session(11, uid="s-2"))

    cache.drop("s-1")

    assert cache.of_pod("lab", "chat") == {"s-2"}


def test_namesake_of_a_dropped_session_is_another_session(cache: SessionCache) -> None:
    """Uids tell them apart, also while both are known."""
    cache.keep(session(11, uid="s-2"))

    assert {s.metadata.uid for s in cache} == {"s-1", "s-2"}


def test_walk_survives_what_happens_meanwhile(cache: SessionCache) -> None:
    """A sweep may drop what it walks over."""
    for known in cache:
        cache.drop(known.metadata.uid)

    assert len(cache) == 0


def test_answer_to_a_write_is_ahead_of_the_watch(cache: SessionCache) -> None:
    """Until the watch brings that version, or a later one."""
    assert not cache.is_ahead_of_watch("s-1")

    cache.keep(session(11))
    assert cache.is_ahead_of_watch("s-1")

    cache.keep(session(11), watched=True)
    assert not cache.is_ahead_of_watch("s-1")


def test_stale_watch_event_does_not_catch_up(cache: SessionCache) -> None:
    """The watch is where its newest event is."""
    cache.keep(session(12))

    cache.keep(session(11), watched=True)

    assert cache.is_ahead_of_watch("s-1")


def test_watch_that_repeats_itself_has_not_gone_back(cache: SessionCache) -> None:
    """A list after a broken watch may bring what is old news by then."""
    cache.keep(session(12), watched=True)

    cache.keep(session(11), watched=True)

    assert not cache.is_ahead_of_watch("s-1")


def test_unknown_session_is_not_ahead() -> None:
    """Nothing known is nothing to be ahead with."""
    assert not SessionCache().is_ahead_of_watch("s-1")


def test_session_without_a_version_is_the_oldest() -> None:
    """An object that was never stored gives way to any that was."""
    bare = msgspec.structs.replace(session(1), metadata=make_metadata(resource_version=""))
    cache = SessionCache()
    cache.keep(bare)

    assert cache.keep(session(1))


@pytest.mark.parametrize("watched", [True, False], ids=["event", "answer"])
def test_buried_session_does_not_come_back(cache: SessionCache, *, watched: bool) -> None:
    """Events and answers that were on their way when it went are of the past."""
    cache.bury("s-1")

    assert not cache.keep(session(11), watched=watched)
    assert "s-1" not in cache


def test_burial_is_forgotten_once_a_list_is_without_it(cache: SessionCache) -> None:
    """The memory of the dead is bounded by one sweep."""
    cache.bury("s-1")
    cache.exhume(listed={"s-1"})
    still = cache.keep(session(11))

    cache.exhume(listed=set())

    assert not still
    assert cache.keep(session(12))
