"""What clients do to records, in real servers."""

import hashlib
from datetime import timedelta

from tests.support.records import UID, open_record, read_record

from gpusession.store.client import RedisClient
from gpusession.store.clients import TOKEN_LIFE, Answer, ClientStore

GATEWAY = "gw-a"
DIGEST = hashlib.sha256(b"token").hexdigest()


async def test_client_comes_beats_and_goes(client: RedisClient) -> None:
    """The whole life of a connection."""
    await open_record(client)
    clients = ClientStore(client)

    granted = await clients.mint(UID, DIGEST, TOKEN_LIFE)
    answer, welcome = await clients.connect(UID, DIGEST, GATEWAY)
    beaten = await clients.beats([(UID, DIGEST)] * 3, GATEWAY)
    used = await clients.activity(UID, DIGEST, GATEWAY, timedelta(0))
    closed = await clients.close(UID, DIGEST)
    gone = await clients.disconnect(UID, GATEWAY, evidence=True)

    assert {granted.answer, answer, *beaten, used, closed, gone} == {Answer.OK}
    assert welcome is not None
    assert (welcome.ns, welcome.name) == ("ns", "a")
    assert (await read_record(client)).n == 6
