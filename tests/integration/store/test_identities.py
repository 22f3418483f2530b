"""Whose token it is, as a real server says."""

import hashlib
from datetime import timedelta

from tests.support.records import UID, open_record, read_record

from gpusession.api.session import RecordState
from gpusession.store.client import RedisClient
from gpusession.store.clients import TOKEN_LIFE, Answer, ClientStore
from gpusession.store.identities import IdentityStore
from gpusession.store.pulse import Pulse
from gpusession.store.sessions import SessionStore

DIGEST = hashlib.sha256(b"token").hexdigest()


async def test_a_look_tells_whose_token_it_is_and_counts_for_nothing(client: RedisClient) -> None:
    """A gateway refuses before it moves anything."""
    await open_record(client)
    clients = ClientStore(client)
    await clients.mint(UID, DIGEST, TOKEN_LIFE)
    before = await read_record(client)

    look = await IdentityStore(client).look(UID, DIGEST)
    stranger = await IdentityStore(client).look(UID, "other")

    assert (look.answer, look.ns, look.name, look.user) == (Answer.OK, "ns", "a", "ann")
    assert (stranger.answer, stranger.ns) == (Answer.TOKEN_UNKNOWN, "")
    assert await read_record(client) == before


async def test_a_session_that_ends_soon_is_told_with_reason_and_time(client: RedisClient) -> None:
    """An HTTP client gets its deadline from here."""
    await open_record(client)
    await ClientStore(client).mint(UID, DIGEST, TOKEN_LIFE)
    await SessionStore(client).claim(
        UID,
        to=RecordState.PENDING,
        why="Idle",
        grace=timedelta(minutes=1),
        counter=None,
        watch=(await Pulse(client).tick()).proof,
    )

    look = await IdentityStore(client).look(UID, DIGEST)

    assert (look.state, look.why) == (RecordState.PENDING, "Idle")
    assert look.until is not None


async def test_a_token_without_a_record_has_no_facts(client: RedisClient) -> None:
    """Missing proves nothing, and tells nothing."""
    assert (await IdentityStore(client).look(UID, DIGEST)).answer is Answer.MISSING
