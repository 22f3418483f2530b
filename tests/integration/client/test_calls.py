"""Single HTTP calls: what goes wrong is an Ending and never an error that holds headers."""

import pytest
from tests.support.client_rig import QUICK, FakeGateway

from gpusession.api.frames import SessionAnswer
from gpusession.client.ending import Ending
from gpusession.client.opening import calling


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 410, 429, 500, 503])
async def test_every_status_but_success_is_an_ending(gateway: FakeGateway, status: int) -> None:
    """A redirect is not followed either: the token is for this gateway alone."""
    gateway.rules(status=status)
    async with calling(gateway.url, tls=None, timing=QUICK) as calls:
        answer = await calls.post(
            "/v1/heartbeat", SessionAnswer, bearer="token-0", body=None, session=None
        )

    assert isinstance(answer, Ending)
    assert answer.reason == "Told"


async def test_gateway_that_is_not_there_is_an_ending(gateway: FakeGateway) -> None:
    """With the kind of error as its reason."""
    gateway.process.kill()
    async with calling(gateway.url, tls=None, timing=QUICK) as calls:
        answer = await calls.post(
            "/v1/heartbeat", SessionAnswer, bearer="token-0", body=None, session=None
        )

    assert answer == Ending(1006, "ClientConnectorError")
