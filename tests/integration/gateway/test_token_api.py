"""New Session tokens for Kubernetes identities, and their revocation, at a real gateway."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.control_plane import ControlPlane
from tests.support.fake_apiserver import FakeApiserver
from tests.support.gateway_rig import Desk, Known, Reply, StartGateway
from tests.support.records import watch
from tests.support.redis_server import RedisServer

from gpusession.store import keys

AUDIENCE = "gpusession-gateway"
ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: gateway-test}
rules:
  - {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
  - {apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}
"""


class Office:
    """A gateway, a fake apiserver, and Ada, who may do all to tokens in namespace ns."""

    def __init__(self, front: Desk, apiserver: FakeApiserver) -> None:
        self.front = front
        self.apiserver = apiserver

    async def mint(self, name: str, *, bearer: str = "ada", namespace: str = "ns") -> Reply:
        """Ask for a token."""
        return await self.front.call(
            "POST",
            "/v1/token",
            headers={"Authorization": f"Bearer {bearer}"},
            json={"namespace": namespace, "name": name},
        )

    async def revoke(self, query: str, *, bearer: str = "ada") -> Reply:
        """Revoke a user's tokens."""
        headers = {"Authorization": f"Bearer {bearer}"}
        return await self.front.call("DELETE", f"/v1/tokens?{query}", headers=headers)


@pytest.fixture
async def office(
    own_redis: RedisServer, start_gateway: StartGateway, tmp_path: Path
) -> AsyncIterator[Office]:
    """Give an office; Ada may, Bob is known and may not, everyone else is unknown."""
    async with FakeApiserver() as apiserver:
        apiserver.tokens |= {"ada": ("ada", [AUDIENCE]), "bob": ("bob", [AUDIENCE])}
        apiserver.tokens["agents"] = ("ada", ["gpusession-agent"])
        apiserver.allowed |= {("ada", "create", "ns", name) for name in ("chat", "nobody")}
        apiserver.allowed.add(("ada", "delete", "ns", ""))
        kubeconfig = apiserver.write_kubeconfig(tmp_path / "kubeconfig")
        front = await start_gateway(
            own_redis, kubeconfig=kubeconfig, user_rate=0.01, user_burst=5, log_level="INFO"
        )
        yield Office(front, apiserver)


async def _chat(office: Office, **changed: str) -> Known:
    known = Known("0f6ac3ae-90a4-4f21-9b3c-0a6b6f2d6a11", "chat", "")
    await office.front.reopen(known, **changed)
    return known


async def test_who_may_create_gets_a_token_that_works(office: Office) -> None:
    """No Secret anywhere: Kubernetes says who may."""
    chat = await _chat(office)

    reply = await office.mint("chat")
    minted = Known(chat.uid, "chat", reply.body["token"])

    assert reply.body["expiresInSeconds"] == 1800
    assert (await office.front.call("POST", "/v1/heartbeat", minted)).body["name"] == "chat"


async def test_a_token_that_redis_loses_at_once_is_put_back(office: Office) -> None:
    """An older copy comes back before its client has shown it to anybody."""
    chat = await _chat(office)
    minted = Known(chat.uid, "chat", (await office.mint("chat")).body["token"])
    await office.front.redis.call("DEL", keys.tokens(chat.uid))

    reply = await office.front.call("POST", "/v1/heartbeat", minted)

    assert reply.body["name"] == "chat"


@pytest.mark.parametrize(
    ("bearer", "refusal"),
    [
        ("stranger", (401, "Unauthorized")),
        ("agents", (401, "Unauthorized")),
        ("bob", (403, "Forbidden")),
    ],
    ids=["unknown", "another audience", "no right"],
)
async def test_who_may_not_gets_none(office: Office, bearer: str, refusal: tuple[int, str]) -> None:
    """The audience, the identity and the right are each asked for."""
    await _chat(office)

    assert (await office.mint("chat", bearer=bearer)).reason == refusal
    assert (await office.revoke("user=ann&namespace=ns", bearer=bearer)).reason == refusal


async def test_a_right_in_one_place_is_none_in_another(office: Office) -> None:
    """Name and namespace both count, and no namespace means all of them."""
    assert (await office.mint("other")).reason == (403, "Forbidden")
    assert (await office.mint("chat", namespace="elsewhere")).reason == (403, "Forbidden")
    assert (await office.revoke("user=ann")).reason == (403, "Forbidden")


async def test_without_the_apiserver_nobody_gets_a_token(office: Office) -> None:
    """503: fail closed, and say that it may be better soon."""
    await _chat(office)
    office.apiserver.is_down = True

    reply = await office.mint("chat")

    assert reply.reason == (503, "KubernetesUnavailable")
    assert "Retry-After" in reply.headers


async def test_a_session_without_a_record_is_503(office: Office) -> None:
    """Not bound yet, over, or lost: a missing record proves nothing."""
    assert (await office.mint("nobody")).reason == (503, "RecordMissing")


async def test_a_good_answer_is_asked_for_once_in_a_while(office: Office) -> None:
    """The identity is remembered; the right is asked for every time."""
    await _chat(office)
    for _ in range(3):
        await office.mint("chat")

    assert (office.apiserver.requests["review"], office.apiserver.requests["access"]) == (1, 3)


async def test_too_many_tokens_are_refused_with_a_time(office: Office) -> None:
    """Five at once, then one in a hundred seconds."""
    await _chat(office)
    replies = [await office.mint("chat") for _ in range(6)]

    assert [reply.status for reply in replies] == [200] * 5 + [429]
    assert replies[5].body["reason"] == "TooManyRequests"
    assert 90 <= int(replies[5].headers["Retry-After"]) <= 100


async def test_a_users_tokens_are_revoked_everywhere(office: Office) -> None:
    """All Sessions of that user in that namespace, and no other's."""
    await watch(office.front.redis)
    chat = await _chat(office, user="ann")
    minted = Known(chat.uid, "chat", (await office.mint("chat")).body["token"])
    other = await office.front.known(user="eve")

    reply = await office.revoke("user=ann&namespace=ns")

    assert reply.body == {"revoked": 1}
    heard = await office.front.call("POST", "/v1/heartbeat", minted)
    assert heard.reason == (403, "TokenRevoked")
    assert (await office.front.call("POST", "/v1/heartbeat", other)).status == 200


async def test_a_revocation_while_records_are_rebuilt_is_to_be_said_again(office: Office) -> None:
    """Nobody knows whose the missing ones are; those that are there are revoked already."""
    chat = await _chat(office, user="ann")
    minted = Known(chat.uid, "chat", (await office.mint("chat")).body["token"])

    reply = await office.revoke("user=ann&namespace=ns")

    assert reply.reason == (503, "RecordMissing")
    assert "Retry-After" in reply.headers
    heard = await office.front.call("POST", "/v1/heartbeat", minted)
    assert heard.reason == (403, "TokenRevoked")


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"namespace":"ns","name":"../x"}', b'{"namespace":"N S","name":"a"}']
)
async def test_a_name_that_no_object_has_is_refused(office: Office, body: bytes) -> None:
    """Before anybody is asked."""
    headers = {"Authorization": "Bearer ada"}

    reply = await office.front.call("POST", "/v1/token", headers=headers, data=body)

    assert reply.reason == (400, "BadRequest")
    assert office.apiserver.requests["review"] == 0


@pytest.fixture
def lowly(session_api: ControlPlane, namespace: str, tmp_path: Path) -> Path:
    """Give the login of a gateway: it may ask for reviews, and nothing else."""
    role = tmp_path / "role.yaml"
    role.write_text(ROLE)
    session_api.kubectl("apply", "-f", str(role))
    session_api.kubectl("create", "serviceaccount", "gateway", "-n", namespace)
    to = [f"--serviceaccount={namespace}:gateway", "--clusterrole=gateway-test"]
    session_api.kubectl("create", "clusterrolebinding", "gateway-test", *to)
    return session_api.kubeconfig_for_service_account(namespace, "gateway", tmp_path)


@pytest.fixture
def minter(session_api: ControlPlane, namespace: str) -> str:
    """Give the token of a ServiceAccount that may create tokens of Session chat."""
    rights = ["--verb=create", "--resource=sessions.gpusession.dev/token", "--resource-name=chat"]
    session_api.kubectl("create", "role", "mint", *rights, "-n", namespace)
    to = [f"--serviceaccount={namespace}:default", "--role=mint", "-n", namespace]
    session_api.kubectl("create", "rolebinding", "mint", *to)
    return session_api.service_account_token(namespace, "default", AUDIENCE).read_text()


async def test_a_real_apiserver_says_the_same(
    lowly: Path, minter: str, own_redis: RedisServer, start_gateway: StartGateway
) -> None:
    """TokenReview and SubjectAccessReview, with no other right than to ask for them."""
    front = await start_gateway(own_redis, kubeconfig=lowly)
    place = "gateway-test-token-api"
    known = Known("0f6ac3ae-90a4-4f21-9b3c-0a6b6f2d6a11", "chat", "")
    await front.reopen(known, namespace=place)
    office = Office(front, FakeApiserver())

    assert (await office.mint("chat", bearer=minter, namespace=place)).status == 200
    refused = await office.mint("other", bearer=minter, namespace=place)
    assert refused.reason == (403, "Forbidden")


async def test_a_slow_redis_is_an_answer_in_time(
    own_redis: RedisServer, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Whatever a single command is allowed: a caller waits for all of them together."""
    async with FakeApiserver() as apiserver:
        apiserver.tokens["ada"] = ("ada", [AUDIENCE])
        apiserver.allowed.add(("ada", "create", "ns", "chat"))
        kubeconfig = apiserver.write_kubeconfig(tmp_path / "kubeconfig")
        front = await start_gateway(
            own_redis, kubeconfig=kubeconfig, redis_timeout="PT8S", answer_timeout="PT0.5S"
        )
        own_redis.pause()

        reply = await Office(front, apiserver).mint("chat")
        own_redis.resume()

    assert (reply.status, reply.body["reason"]) == (503, "StoreUnavailable")
    assert "within 0.5 s" in reply.body["message"]
