"""Clients as they are deployed: a Pod that beats through the gateways' Service."""

import time

import pytest
from tests.cluster import outside
from tests.cluster.stage import PERIOD, SECONDS, Object, Stage, pod, session
from tests.support.processes import wait_until

pytestmark = pytest.mark.timeout(180)

GATEWAY = "http://gpusession-gateway.gpusession-system.svc.cluster.local"
BEATS = {"periodSeconds": 1, "failureThreshold": 3, "initialDelaySeconds": 5}
THRESHOLDS = 12.0
"""More than initial delay and threshold together: whoever lives then was heard."""


@pytest.fixture
def account(stage: Stage) -> str:
    """Give a ServiceAccount that may have tokens of Sessions in the namespace."""
    stage.kubectl("create", "serviceaccount", "clients")
    role = ("--clusterrole=gpusession-client", "--serviceaccount=default:clients")
    stage.kubectl("create", "rolebinding", "clients", *role)
    return "clients"


def client_of(name: str, account: str) -> Object:
    """Describe a Pod that beats for a Session, with nothing but its own identity."""
    folder = "/var/run/secrets/gpusession"
    token = {"serviceAccountToken": {"audience": "gpusession-gateway", "path": "token"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{name}-client"},
        "spec": {
            "serviceAccountName": account,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 5,
            "containers": [
                {
                    "name": "beat",
                    "image": "localhost/gpusession:dev",
                    "imagePullPolicy": "Never",
                    "args": ["beat", f"--url={GATEWAY}", f"--session={name}"],
                    "volumeMounts": [{"name": "identity", "mountPath": folder}],
                }
            ],
            "volumes": [{"name": "identity", "projected": {"sources": [token]}}],
        },
    }


def test_session_lives_as_long_as_its_client_pod(stage: Stage, account: str) -> None:
    """The one with a client stays, the one without ends; then the client goes, and so it."""
    for name in ("kept", "left"):
        stage.apply(pod(name, "--memory=1Gi"))
        stage.wait_holding(name)
    stage.apply(client_of("kept", account))
    stage.kubectl("wait", "pod/kept-client", "--for=condition=Ready", "--timeout=60s")
    liveness = {"heartbeat": BEATS, "disconnectGraceMilliseconds": 500}

    stage.apply(*(session(name, **liveness) for name in ("kept", "left")))
    bound = stage.wait_phase("kept", "Active")
    left = stage.wait_phase("left", "Destroyed")
    _sleep_until(stage, "kept", THRESHOLDS)
    alive = stage.status("kept")
    stage.kubectl("delete", "pod", "kept-client", "--timeout=60s")
    kept = stage.wait_phase("kept", "Destroyed")

    assert (left["reason"], left["release"]["verdict"]) == ("HeartbeatLost", "Freed")
    assert alive == bound
    assert (kept["reason"], kept["release"]["verdict"]) == ("Disconnected", "Freed")
    assert outside.living(bound["podUID"]) == []


def _sleep_until(stage: Stage, name: str, seconds: float) -> None:
    """Let so much time pass, unless the Session does not stay."""
    until = time.monotonic() + seconds
    wait_until(
        lambda: time.monotonic() > until or stage.status(name).get("phase") != "Active",
        timeout=SECONDS,
        what="time to pass",
        period=PERIOD,
    )
