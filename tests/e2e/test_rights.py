"""Least privilege, proven by the apiserver's audit log of a run that tells every story.

A new right needs a new story: a function of STORIES that makes the operator use it.
"""

import json
import time
import urllib.request
from collections.abc import Callable

import pytest
from tests.support.gateway_rig import GatewayProcess
from tests.support.operator_stack import AGENT_ACCOUNT, CONTROLLER_ACCOUNT, SYSTEM, OperatorStack
from tests.support.owners_world import (
    DEPLOYMENT,
    REPLICA_SET,
    REPLICATION_CONTROLLER,
    STATEFUL_SET,
    pods_of,
    start_workload,
)
from tests.support.rights import Right, granted, used
from tests.support.session_api import BASE, GATEWAY, create
from tests.support.session_world import World

from gpusession.api.frames import TOKEN_AUDIENCE

pytestmark = pytest.mark.timeout(150)

ACCOUNTS = {CONTROLLER_ACCOUNT, AGENT_ACCOUNT, GATEWAY}
GRANTED = granted(BASE / "10-rbac.yaml", BASE / "11-leader-election.yaml")


def end_and_go_by_the_ttl(world: World) -> None:
    """Need finalizer, bind, caller's token, Pod, release, Event, and the object's deletion."""
    world.start("brief", "--memory=1Gi", ttlSecondsAfterDestroyed=1)
    world.close("brief")
    world.wait_gone("brief")


def come_before_the_pod(world: World) -> None:
    """Have the Pod's absence asked of the apiserver."""
    world.apply(world.session("early"))
    world.wait(lambda: world.status("early").get("reason") == "PodNotFound", "PodNotFound")


def name_a_missing_node(world: World) -> None:
    """Have a Node's absence asked as well."""
    world.apply(world.pod("remote", node="node-x"), world.session("remote"))
    world.wait(lambda: world.status("remote").get("phase") == "Pending", "remote to be seen")
    world.kubectl("delete", "pod", "remote", "--grace-period=0", "--force")


def share_a_pod(world: World) -> None:
    """Have the agent ask whether the first one still lives."""
    world.start("owner", "--memory=1Gi")
    world.apply(world.session("latecomer", pod="owner"))
    world.wait(lambda: world.status("latecomer").get("reason") == "PodInUse", "PodInUse")


def scale_every_kind_of_owner(world: World) -> None:
    """Have each read, the first three asked which Pods they count, and all scaled to 0."""
    kinds = {
        "deployed": DEPLOYMENT,
        "replicated": REPLICA_SET,
        "counted": REPLICATION_CONTROLLER,
        "ordered": STATEFUL_SET,
    }
    for name, kind in kinds.items():
        start_workload(world, kind, name)
    for name in kinds:
        world.wait(lambda n=name: len(pods_of(world, n)) == 1, f"the Pod of {name}")
        (pod,) = pods_of(world, name)
        world.apply(world.session(name, pod=pod, on_release="ScaleOwner"))
    for name in kinds:
        world.wait_phase(name, "Active")
        world.close(name)
    for name in kinds:
        world.wait_phase(name, "Destroyed")
        assert world.reason(name, "OwnerWillRecreate") == "OwnerScaled"


def ask_for_a_token(world: World) -> None:
    """Have a gateway ask whose token a client shows, and whether it may have one of a Session."""
    plane, account = world.stack.plane, f"{world.namespace}:default"
    world.kubectl(
        *("create", "rolebinding", "client", "--clusterrole=gpusession-client"),
        f"--serviceaccount={account}",
    )
    kubernetes = plane.service_account_token(world.namespace, "default", TOKEN_AUDIENCE)
    folder = world.stack.workdir / "rights"
    kubeconfig = plane.kubeconfig_for_service_account(SYSTEM, "gpusession-gateway", folder)
    with GatewayProcess(
        folder, redis_url=world.stack.records.url, kubeconfig=kubeconfig
    ) as gateway:
        asked = urllib.request.Request(  # noqa: S310 - our own loopback
            f"{gateway.url}/v1/token",
            data=json.dumps({"namespace": world.namespace, "name": "owner"}).encode(),
            headers={"Authorization": f"Bearer {kubernetes.read_text()}"},
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310 - as above
            assert answer.status == 200


def move_unseen(world: World) -> None:
    """Have the finalizer refused at a version that has passed, and the Session read again."""
    world.apply(world.pod("moved", node=""))
    create(world.stack.plane, world.session("moved"))  # apply's annotation would spare the test
    time.sleep(0.5)  # the controller sees it
    controller = world.stack.controller
    controller.pause()
    try:
        world.kubectl("label", "session", "moved", "example.com/moved=yes")
        time.sleep(3.2)  # a young Session is left alone for three seconds
    finally:
        controller.resume()
    world.wait(lambda: world.status("moved").get("reason") == "PodUnscheduled", "PodUnscheduled")


def delete_the_namespace(world: World) -> None:
    """End what the stories above have left; this one comes last."""
    world.stack.plane.kubectl("delete", "namespace", world.namespace, "--timeout=60s")


STORIES: tuple[Callable[[World], None], ...] = (
    end_and_go_by_the_ttl,
    come_before_the_pod,
    name_a_missing_node,
    share_a_pod,
    ask_for_a_token,
    scale_every_kind_of_owner,
    move_unseen,
    delete_the_namespace,
)
"""Leader election, the watch of namespaces and the agents' first list of Sessions come with the
stack's own start."""

Uses = tuple[set[Right], set[Right]]


@pytest.fixture(scope="module")
def uses(stack: OperatorStack) -> Uses:
    """Tell every story, then read who was allowed and who was forbidden what."""
    world = World(stack, "e2e-rights")
    for story in STORIES:
        story(world)
    return used(stack.plane.audit_log, ACCOUNTS)


@pytest.mark.parametrize("right", GRANTED, ids=str)
def test_every_right_that_is_granted_is_used(uses: Uses, right: Right) -> None:
    """Whoever takes over an account gets nothing that the account has no use for."""
    allowed, _ = uses

    assert any(right.covers(use) for use in allowed)


def test_every_right_that_is_used_is_granted(uses: Uses) -> None:
    """RBAC forbade nothing, and nothing was allowed by roles that are not ours."""
    allowed, forbidden = uses

    assert not forbidden
    assert not {use for use in allowed if not any(right.covers(use) for right in GRANTED)}
