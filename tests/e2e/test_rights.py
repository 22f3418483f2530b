"""Least privilege, proven by the apiserver's audit log of a run that tells every story.

A new right needs a new story: a function of STORIES that makes the operator use it.
"""

import time
from collections.abc import Callable

import pytest
from tests.support.operator_stack import AGENT_ACCOUNT, CONTROLLER_ACCOUNT, OperatorStack
from tests.support.rights import Right, granted, used
from tests.support.session_api import MANIFESTS, create
from tests.support.session_world import World

pytestmark = pytest.mark.timeout(90)

ACCOUNTS = {CONTROLLER_ACCOUNT, AGENT_ACCOUNT}
GRANTED = granted(MANIFESTS / "10-rbac.yaml", MANIFESTS / "11-leader-election.yaml")


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
    move_unseen,
    delete_the_namespace,
)
"""Leader election and the agents' first list of Sessions come with the stack's own start."""

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
