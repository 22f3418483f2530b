"""manifests/argocd-health.lua, run by the Lua of a real Redis, as Argo CD would run it."""

import json
import re
from typing import Any

import pytest
import redis
from tests.support.redis_server import RedisServer
from tests.support.session_api import MANIFESTS

from gpusession.api.session import Reason

SCRIPT = (MANIFESTS / "argocd-health.lua").read_text(encoding="utf-8")
WRAPPED = (
    "local obj = cjson.decode(ARGV[1])\n"
    f"local function check()\n{SCRIPT}\nend\n"
    "return cjson.encode(check())"
)


STUCK = re.findall(r"(\w+) = true", SCRIPT)


def session(phase: str | None, **conditions: str) -> dict[str, Any]:
    """Give a Session in a phase, its conditions written as Status/Reason."""
    if phase is None:
        return {"metadata": {"name": "s"}}
    listed = [
        {"type": kind, "status": told.split("/")[0], "reason": told.split("/")[1], "message": "m"}
        for kind, told in conditions.items()
    ]
    return {"status": {"phase": phase, "nodeName": "node-a", "conditions": listed}}


@pytest.mark.parametrize(
    ("seen", "status", "message"),
    [
        (session(None), "Progressing", "not seen"),
        (session("Pending", Ready="False/PodUnscheduled"), "Progressing", "PodUnscheduled: m"),
        (session("Pending", Ready="False/PodNotManaged"), "Degraded", "PodNotManaged"),
        (session("Active", Ready="True/Bound"), "Healthy", "node-a"),
        (
            session("Active", ExpiryPaused="True/MassSilence"),
            "Healthy",
            "node-a; ExpiryPaused, MassSilence: m",
        ),
        (
            session("Active", OwnerWillRecreate="True/OwnedByReplicaSet"),
            "Healthy",
            "OwnerWillRecreate, OwnedByReplicaSet: m",
        ),
        (
            session("PendingDestroy", GPUReleased="False/DestroyGrace"),
            "Progressing",
            "unless a client comes back",
        ),
        (session("PendingDestroy", GPUReleased="False/Releasing"), "Progressing", "Releasing"),
        (session("PendingDestroy", GPUReleased="False/StillHeld"), "Degraded", "StillHeld"),
        (
            session("PendingDestroy", GPUReleased="True/Freed", StateCleared="False/KeyRefused"),
            "Degraded",
            "KeyRefused",
        ),
        (session("Destroyed", GPUReleased="True/Freed"), "Healthy", "Freed"),
        (
            session("Destroyed", GPUReleased="True/Freed", OwnerWillRecreate="True/OwnerScaledUp"),
            "Healthy",
            "OwnerScaledUp",
        ),
    ],
)
def test_it_tells_waiting_from_stuck(
    redis_servers: dict[str, RedisServer], seen: dict[str, Any], status: str, message: str
) -> None:
    """What time heals is Progressing, what waits for a human is Degraded."""
    with redis.Redis.from_url(next(iter(redis_servers.values())).url) as client:
        answer = json.loads(client.eval(WRAPPED, 0, json.dumps(seen)))

    assert answer["status"] == status
    assert message in answer["message"]


def test_it_knows_reasons_by_their_names() -> None:
    """A reason that was renamed would be taken for something that time heals."""
    assert STUCK
    assert {str(reason) for reason in Reason} >= set(STUCK)
