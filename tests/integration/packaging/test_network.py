"""What the NetworkPolicies let through, read as a network plugin would, for the Pods we make.

No plugin enforces them here. So the rules of the API are played on the rendered objects: who may
open a connection to whom, on the ports on which the processes listen by their settings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from gpusession.settings import AgentSettings, ControllerSettings, GatewaySettings

Object = dict[str, Any]
Render = Callable[..., list[Object]]

SYSTEM, AGENTS = "gpusession-system", "gpusession-agents"
NAME = "app.kubernetes.io/name"

AGENT = AgentSettings(node_name="any")
CONTROLLER = ControllerSettings()
GATEWAY = GatewaySettings()
REDIS_PORT = urlsplit(CONTROLLER.redis_url.get_secret_value()).port or 0
KUBE_APISERVER = (443, 6443)
"""The Service's port, and the usual one behind it."""


@dataclass(frozen=True)
class Pod:
    """One end of a connection, as policies see it."""

    namespace: str
    labels: dict[str, str] = field(default_factory=dict)


def ours(name: str, namespace: str = SYSTEM) -> Pod:
    """Give a Pod of ours by the name of its workload."""
    return Pod(namespace, {NAME: f"gpusession-{name}"})


PODS = {
    "controller": ours("controller"),
    "gateway": ours("gateway"),
    "redis": ours("redis"),
    "agent": ours("agent", AGENTS),
    "tenant": Pod("tenants", {NAME: "gpusession-controller"}),  # labels are for the taking
    "stray": Pod(SYSTEM, {NAME: "other"}),
    "neighbour": Pod(AGENTS, {NAME: "other"}),
}


def chosen(selector: Object | None, labels: dict[str, str]) -> bool:
    """Tell whether a label selector takes these labels; ours know nothing but equality."""
    assert set(selector or {}) <= {"matchLabels"}
    return (selector or {}).get("matchLabels", {}).items() <= labels.items()


def is_peer(peer: Object, other: Pod, home: str) -> bool:
    """Tell whether an entry of from or to means the other end."""
    assert set(peer) <= {"podSelector", "namespaceSelector"}
    if "namespaceSelector" in peer:
        namespace = {"kubernetes.io/metadata.name": other.namespace}  # set by the apiserver
        if not chosen(peer["namespaceSelector"], namespace):
            return False
    elif other.namespace != home:
        return False
    return chosen(peer.get("podSelector"), other.labels)


def lets(
    policies: list[Object], direction: str, *, pod: Pod, other: Pod, port: tuple[int, str]
) -> bool:
    """Tell whether one end may, by all policies that select it; without any it may all."""
    peers = {"Ingress": "from", "Egress": "to"}[direction]
    rules = [
        policy["spec"].get(direction.lower(), [])
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and chosen(policy["spec"]["podSelector"], pod.labels)
        and direction in policy["spec"]["policyTypes"]
    ]
    return not rules or any(
        (peers not in rule or any(is_peer(each, other, pod.namespace) for each in rule[peers]))
        and any((each["port"], each["protocol"]) == port for each in rule["ports"])
        for group in rules
        for rule in group
    )


def reaches(
    policies: list[Object], source: str, target: str, *, port: int, how: str = "TCP"
) -> bool:
    """Tell whether a connection is let out at one end and in at the other."""
    here, there = PODS[source], PODS[target]
    return lets(policies, "Egress", pod=here, other=there, port=(port, how)) and lets(
        policies, "Ingress", pod=there, other=here, port=(port, how)
    )


@pytest.fixture
def objects(kustomized: Render) -> list[Object]:
    """Give the base with a Redis of its own."""
    return kustomized("redis")


@pytest.fixture
def policies(objects: list[Object]) -> list[Object]:
    """Give its policies."""
    return [each for each in objects if each["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize(
    ("source", "target", "ports"),
    [
        ("controller", "agent", [AGENT.port]),
        ("controller", "redis", [REDIS_PORT]),
        ("gateway", "redis", [REDIS_PORT]),
        ("tenant", "gateway", [GATEWAY.port, GATEWAY.metrics_port]),
        ("tenant", "controller", [CONTROLLER.metrics_port]),
        ("tenant", "agent", [AGENT.metrics_port]),
        ("controller", "tenant", [53, REDIS_PORT, *KUBE_APISERVER]),
        ("gateway", "tenant", [53, REDIS_PORT, *KUBE_APISERVER]),
        ("agent", "tenant", [53, REDIS_PORT, *KUBE_APISERVER]),
    ],
)
def test_what_is_needed_gets_through(
    policies: list[Object], source: str, target: str, *, ports: list[int]
) -> None:
    """Where the processes listen by default, and whom they call: apiserver, DNS, Redis."""
    assert [port for port in ports if not reaches(policies, source, target, port=port)] == []


@pytest.mark.parametrize("source", ["controller", "gateway", "agent"])
def test_names_are_looked_up_by_udp(policies: list[Object], source: str) -> None:
    """DNS asks that way first."""
    assert reaches(policies, source, "tenant", port=53, how="UDP")


@pytest.mark.parametrize(
    ("target", "port", "sources"),
    [
        ("agent", AGENT.port, {"controller"}),
        ("redis", REDIS_PORT, {"controller", "gateway"}),
        ("controller", AGENT.port, set()),
        ("gateway", REDIS_PORT, set()),
        ("stray", 443, set()),
        ("neighbour", 443, set()),
    ],
)
def test_nobody_else_is_let_in(
    policies: list[Object], target: str, port: int, *, sources: set[str]
) -> None:
    """Whatever the other end lets out, and whatever labels it carries in its namespace."""
    there = PODS[target]

    let_in = {
        name
        for name, other in PODS.items()
        if lets(policies, "Ingress", pod=there, other=other, port=(port, "TCP"))
    }

    assert let_in == sources


@pytest.mark.parametrize(
    ("source", "port", "targets"),
    [
        ("controller", AGENT.port, {"agent"}),
        ("gateway", AGENT.port, set()),
        ("agent", AGENT.port, set()),
        ("redis", 443, set()),
        ("stray", 443, set()),
        ("neighbour", 443, set()),
    ],
)
def test_nobody_calls_out_for_more(
    policies: list[Object], source: str, port: int, *, targets: set[str]
) -> None:
    """Whoever took over a Pod of ours is not let out to where it has no business."""
    here = PODS[source]

    let_out = {
        name
        for name, other in PODS.items()
        if lets(policies, "Egress", pod=here, other=other, port=(port, "TCP"))
    }

    assert let_out == targets


def test_every_workload_is_let_in_at_its_own_ports(
    objects: list[Object], policies: list[Object]
) -> None:
    """A policy of its name selects its Pods, and names the ports of its containers, no other."""
    for workload in (each for each in objects if "template" in each.get("spec", {})):
        metadata, template = workload["metadata"], workload["spec"]["template"]
        place = (metadata["namespace"], metadata["name"])
        (policy,) = [
            each["spec"]
            for each in policies
            if (each["metadata"]["namespace"], each["metadata"]["name"]) == place
        ]

        listens = {
            port["containerPort"]
            for container in template["spec"]["containers"]
            for port in container["ports"]
        }
        assert chosen(policy["podSelector"], template["metadata"]["labels"])
        assert policy["podSelector"]["matchLabels"] == {NAME: metadata["name"]}
        assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == listens
