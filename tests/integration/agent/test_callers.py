"""Who may give orders, as TokenReview over HTTP says."""

from collections.abc import AsyncIterator
from datetime import timedelta

import aiohttp
import pytest
from tests.support.fake_apiserver import FakeApiserver

from gpusession.agent.callers import FORBIDDEN, UNAUTHENTICATED, CallerCheck
from gpusession.errors import ApiUnavailable, Refused
from gpusession.kube.client import KubeClient
from gpusession.kube.reviews import NEGATIVE_CACHE, KubeReviews

CONTROLLER = "system:serviceaccount:gpusession-system:gpusession-controller"
AUDIENCE = "gpusession-agent"


class Desk:
    """A CallerCheck, its apiserver, and a clock that only we move."""

    def __init__(self, apiserver: FakeApiserver, session: aiohttp.ClientSession) -> None:
        self.apiserver = apiserver
        self.now = 1000.0
        self.check = CallerCheck(
            KubeReviews(KubeClient(session, server=apiserver.url)),
            allowed_caller=CONTROLLER,
            cache=timedelta(seconds=30),
            monotonic=lambda: self.now,
        ).check


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """Give a desk that knows the controller's token."""
    async with FakeApiserver() as apiserver, aiohttp.ClientSession() as session:
        apiserver.tokens["good"] = (CONTROLLER, [AUDIENCE])
        yield Desk(apiserver, session)


async def test_the_controller_gets_in_and_is_asked_about_once(desk: Desk) -> None:
    """Its answer is believed for the time of the cache."""
    await desk.check("Bearer good")
    desk.now += 29
    await desk.check("Bearer good")

    assert desk.apiserver.requests["review"] == 1


async def test_a_good_token_is_asked_about_again_in_time(desk: Desk) -> None:
    """A revoked caller lives on for the time of the cache and no longer."""
    await desk.check("Bearer good")
    desk.apiserver.tokens.clear()
    desk.now += 30

    with pytest.raises(Refused) as refused:
        await desk.check("Bearer good")
    assert refused.value.reason == UNAUTHENTICATED


@pytest.mark.parametrize("header", [None, "", "Bearer ", "Basic good", "good"])
async def test_without_a_bearer_token_nobody_is_asked(desk: Desk, header: str | None) -> None:
    """Strangers cost the apiserver nothing."""
    with pytest.raises(Refused) as refused:
        await desk.check(header)

    assert refused.value.reason == UNAUTHENTICATED
    assert desk.apiserver.requests["review"] == 0


async def test_a_token_for_another_audience_is_refused(desk: Desk) -> None:
    """The controller's own apiserver token, stolen elsewhere, opens nothing here."""
    desk.apiserver.tokens["api"] = (CONTROLLER, ["https://kubernetes.default.svc"])

    with pytest.raises(Refused) as refused:
        await desk.check("Bearer api")
    assert refused.value.reason == UNAUTHENTICATED


async def test_an_apiserver_that_checks_no_audience_is_not_enough(desk: Desk) -> None:
    """Without our audience in the answer, the token may be meant for anybody."""
    desk.apiserver.knows_audiences = False

    with pytest.raises(Refused) as refused:
        await desk.check("Bearer good")
    assert refused.value.reason == UNAUTHENTICATED


async def test_another_account_is_forbidden(desk: Desk) -> None:
    """A valid token of somebody else is not the controller."""
    desk.apiserver.tokens["other"] = ("system:serviceaccount:default:default", [AUDIENCE])

    with pytest.raises(Refused) as refused:
        await desk.check("Bearer other")
    assert refused.value.reason == FORBIDDEN


async def test_a_refusal_is_remembered_for_seconds_only(desk: Desk) -> None:
    """A flood is answered from memory, and a mended account gets in soon."""
    for _ in range(3):
        with pytest.raises(Refused):
            await desk.check("Bearer late")
    asked = desk.apiserver.requests["review"]
    desk.apiserver.tokens["late"] = (CONTROLLER, [AUDIENCE])
    desk.now += NEGATIVE_CACHE.total_seconds()
    await desk.check("Bearer late")

    assert asked == 1


async def test_without_the_apiserver_known_callers_go_on_and_new_ones_wait(desk: Desk) -> None:
    """Fail closed, but releases in progress are not cut off."""
    await desk.check("Bearer good")
    desk.apiserver.is_down = True

    await desk.check("Bearer good")
    with pytest.raises(ApiUnavailable):
        await desk.check("Bearer new")
