"""What is due when, in real servers."""

from tests.support.records import UID, bend, open_record

from gpusession.store.client import RedisClient
from gpusession.store.deadlines import DeadlineStore, Due, DueKind


async def test_closed_session_is_due(client: RedisClient) -> None:
    """A wish to close is due at once."""
    await open_record(client)
    await bend(client, close=1, gw="gw-a")

    due = await DeadlineStore(client).due()

    assert due == [Due(uid=UID, kind=DueKind.DUE, why="ExplicitClose", node="n1", gateway="gw-a")]
