"""Whose token it is and what they may do, as a real kube-apiserver says."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.cluster import kube_client
from tests.support.control_plane import ControlPlane
from tests.support.fake_apiserver import FakeApiserver

from gpusession.api.release import TOKEN_AUDIENCE
from gpusession.errors import ApiUnavailable, Refused
from gpusession.kube.client import KubeClient
from gpusession.kube.reviews import BearerCheck, KubeReviews, bearer_token

CONTROLLER = ("gpusession-system", "gpusession-controller")


@pytest.fixture
async def reviews(session_api: ControlPlane, tmp_path: Path) -> AsyncIterator[KubeReviews]:
    """Give reviews with the agent's rights."""
    account = ("gpusession-agents", "gpusession-agent")
    kubeconfig = session_api.kubeconfig_for_service_account(*account, tmp_path)
    async with kube_client(kubeconfig) as client:
        yield KubeReviews(client)


@pytest.fixture
async def admin_reviews(session_api: ControlPlane) -> AsyncIterator[KubeReviews]:
    """Give reviews of somebody who may ask everything."""
    async with kube_client(session_api.admin_kubeconfig) as client:
        yield KubeReviews(client)


async def test_token_for_the_agent_names_its_owner(
    session_api: ControlPlane, reviews: KubeReviews
) -> None:
    """The controller's token for our audience is good, and the apiserver says whose it is."""
    token = session_api.service_account_token(*CONTROLLER, TOKEN_AUDIENCE).read_text()

    identity = await reviews.token(token, audience=TOKEN_AUDIENCE)

    assert identity.authenticated
    assert identity.username == "system:serviceaccount:gpusession-system:gpusession-controller"
    assert identity.audiences == (TOKEN_AUDIENCE,)
    assert "system:serviceaccounts" in identity.groups


@pytest.mark.parametrize("audience", ["vault", ""], ids=["another", "apiserver"])
async def test_token_for_another_audience_is_no_good(
    session_api: ControlPlane, reviews: KubeReviews, audience: str
) -> None:
    """A token that was meant for someone else opens no agent, not even the apiserver's own."""
    token = session_api.service_account_token(*CONTROLLER, audience).read_text()

    identity = await reviews.token(token, audience=TOKEN_AUDIENCE)

    assert (identity.authenticated, identity.username) == (False, "")


async def test_made_up_token_is_no_good(reviews: KubeReviews) -> None:
    """Garbage is an answer, not an error."""
    identity = await reviews.token("made-up", audience=TOKEN_AUDIENCE)

    assert not identity.authenticated


async def test_controller_may_not_review_tokens(client: KubeClient) -> None:
    """Only agents and gateways judge callers."""
    with pytest.raises(Refused, match="tokenreviews"):
        await KubeReviews(client).token("made-up", audience=TOKEN_AUDIENCE)


@pytest.mark.parametrize("name", ["chat", "other"])
async def test_a_right_to_one_sessions_tokens_is_no_right_to_anothers(
    session_api: ControlPlane, admin_reviews: KubeReviews, namespace: str, name: str
) -> None:
    """Namespace, name and subresource all count; RBAC says it, groups and all."""
    role = ["--verb=create", "--resource=sessions.gpusession.dev/token", "--resource-name=chat"]
    session_api.kubectl("create", "role", f"mint-{name}", *role, "-n", namespace)
    bound = [f"--role=mint-{name}", f"--serviceaccount={namespace}:default"]
    session_api.kubectl("create", "rolebinding", f"mint-{name}", *bound, "-n", namespace)
    token = session_api.service_account_token(namespace, "default", TOKEN_AUDIENCE).read_text()
    owner = await admin_reviews.token(token, audience=TOKEN_AUDIENCE)

    may = await admin_reviews.may_on_tokens(owner, "create", namespace=namespace, name=name)

    assert may == (name == "chat")
    assert not await admin_reviews.may_on_tokens(owner, "delete", namespace=namespace, name=name)


@pytest.fixture
async def apiserver() -> AsyncIterator[FakeApiserver]:
    """Give a neighbour whose tokens a test makes up."""
    async with FakeApiserver() as apiserver:
        yield apiserver


async def test_an_authenticated_stranger_is_remembered_as_himself(
    apiserver: FakeApiserver, tmp_path: Path
) -> None:
    """The check tells who it is; whoever asks judges what that one may do."""
    apiserver.tokens["t"] = ("ada", ["x"])
    async with kube_client(apiserver.write_kubeconfig(tmp_path / "config")) as client:
        check = BearerCheck(
            KubeReviews(client), audience="x", cache=timedelta(seconds=30), monotonic=lambda: 0.0
        )
        first = await check.identify("Bearer t")
        apiserver.is_down = True

        assert (await check.identify("bearer t")).username == first.username == "ada"
        with pytest.raises(ApiUnavailable):
            await check.identify("Bearer other")


@pytest.mark.parametrize(
    ("header", "token"),
    [(None, None), ("", None), ("Bearer", None), ("Basic x", None), ("bearer x", "x")],
)
def test_only_a_bearer_token_is_one(header: str | None, token: str | None) -> None:
    """The scheme is told apart without regard to case."""
    assert bearer_token(header) == token
