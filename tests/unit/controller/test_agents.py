"""Where each node's agent is, as its Pods come and go."""

from typing import Any

import msgspec
import pytest
from tests.support.builders import NOW, make_pod

from gpusession.api.cluster import Container, ContainerPort, Pod, PodSpec
from gpusession.controller.agents import AgentDirectory


class Directory(AgentDirectory):
    """Remembers what it told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        super().__init__(self.told.append)


@pytest.fixture
def directory() -> Directory:
    """Give a directory that knows nobody."""
    return Directory()


def with_ip(pod: Pod, ip: str | None) -> Pod:
    """Give the Pod with another address."""
    return msgspec.structs.replace(pod, status=msgspec.structs.replace(pod.status, pod_ip=ip))


def test_running_agent_is_found_and_announced(directory: Directory) -> None:
    """Sessions that waited for it are looked at again."""
    directory.note(make_pod(), gone=False)

    assert directory.locate("node-a") == "https://10.0.0.1:8443"
    assert directory.told == ["node-a"]


UNUSABLE: dict[str, Any] = {
    "pending": (make_pod(phase="Pending"), False),
    "failed": (make_pod(phase="Failed"), False),
    "no address": (with_ip(make_pod(), None), False),
    "going": (make_pod(ends=NOW), False),
    "gone": (make_pod(), True),
    "no node": (make_pod(node=None), False),
}


@pytest.mark.parametrize(("pod", "gone"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_pod_is_no_agent(directory: Directory, pod: Pod, *, gone: bool) -> None:
    """Only one that runs, has an address and stays is called."""
    directory.note(pod, gone=gone)

    assert (directory.locate("node-a"), directory.told) == (None, [])


@pytest.mark.parametrize(
    ("pod", "gone"),
    [row for name, row in UNUSABLE.items() if name != "no node"],
    ids=[name for name in UNUSABLE if name != "no node"],
)
def test_agent_that_fails_is_called_no_more(directory: Directory, pod: Pod, *, gone: bool) -> None:
    """Whatever ends it ends its entry."""
    directory.note(make_pod(), gone=False)

    directory.note(pod, gone=gone)

    assert directory.locate("node-a") is None


def test_late_news_of_the_old_agent_do_not_remove_the_new_one(directory: Directory) -> None:
    """A rolling update deletes the old Pod after the new one runs."""
    directory.note(make_pod("old"), gone=False)
    directory.note(with_ip(make_pod("new"), "10.0.0.2"), gone=False)

    directory.note(make_pod("old"), gone=True)

    assert directory.locate("node-a") == "https://10.0.0.2:8443"


def test_each_node_has_its_own_agent(directory: Directory) -> None:
    """The end of one says nothing of the other."""
    directory.note(make_pod("a"), gone=False)
    directory.note(make_pod("b", node="node-b"), gone=False)

    directory.note(make_pod("a"), gone=True)

    assert directory.locate("node-a") is None
    assert directory.locate("node-b") is not None


@pytest.mark.parametrize(
    ("ip", "ports", "url"),
    [
        ("10.0.0.1", (), "https://10.0.0.1:8443"),
        ("10.0.0.1", (9443, 9090), "https://10.0.0.1:9443"),
        ("fd00::1", (), "https://[fd00::1]:8443"),
    ],
    ids=["no port", "first port", "ipv6"],
)
def test_url_is_made_of_address_and_first_declared_port(
    directory: Directory, ip: str, ports: tuple[int, ...], url: str
) -> None:
    """An IPv6 address stands in brackets."""
    container = Container(ports=tuple(ContainerPort(container_port=port) for port in ports))
    spec = PodSpec(node_name="node-a", containers=(container,))

    directory.note(msgspec.structs.replace(with_ip(make_pod(), ip), spec=spec), gone=False)

    assert directory.locate("node-a") == url
