"""Who is silent, whose turn it is, and who is held, over the scopes of a cluster."""

import random
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from gpusession.controller.brakes import CLUSTER, Brakes
from gpusession.rules.brake import BrakeLimits, ScopeKind

LIMITS = BrakeLimits()


@dataclass
class Cluster:
    """Sessions s-0, s-1, ... spread evenly over nodes, a clock, and what agents say."""

    size: int
    nodes: int = 10
    now: float = 1000.0
    works: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.brakes = Brakes(
            LIMITS,
            works=self.works.get,
            clock=lambda: self.now,
            draw=random.Random(1),  # noqa: S311 - repeatable
        )
        totals = {CLUSTER: self.size}
        for index in range(self.size):
            scope = (ScopeKind.NODE, self.node(index))
            totals[scope] = totals.get(scope, 0) + 1
        self.brakes.count(totals)

    def node(self, index: int) -> str:
        """Give the node of a Session."""
        return f"node-{index % self.nodes}"

    def silence(self, *indexes: int, overdue: bool = True) -> None:
        """Find these Sessions silent."""
        for index in indexes:
            self.brakes.note(f"s-{index}", node=self.node(index), gateway="g", overdue=overdue)

    def run(self, seconds: float, *indexes: int) -> list[str]:
        """Sweep every quarter of a second; the silent are found again each time."""
        turns = []
        for _ in range(int(seconds * 4)):
            self.silence(*(i for i in indexes if f"s-{i}" not in turns))
            turns += self.brakes.advance()[0]
            self.now += 0.25
        return turns


def test_one_silent_session_goes_at_once() -> None:
    """It waits for no window and no token."""
    cluster = Cluster(1000)
    cluster.silence(7)

    assert cluster.brakes.advance() == (["s-7"], False)
    assert cluster.brakes.held("s-7") is None


def test_single_session_of_a_cluster_goes() -> None:
    """All of one is not a crowd."""
    cluster = Cluster(1, nodes=1)
    cluster.silence(0)

    assert cluster.brakes.advance()[0] == ["s-0"]


def test_twenty_of_a_thousand_go_within_a_second() -> None:
    """2 % per second is what a cluster may lose by itself."""
    cluster = Cluster(1000, nodes=100)

    turns = cluster.run(1.5, *range(20))

    assert sorted(turns) == sorted(f"s-{i}" for i in range(20))


def test_nobody_goes_when_everybody_is_late() -> None:
    """The brake is on before the first of them is overdue."""
    cluster = Cluster(1000)
    cluster.silence(*range(1000), overdue=False)
    cluster.brakes.advance()

    turns = cluster.run(15, *range(1000))

    held = cluster.brakes.held("s-1")
    assert turns == []
    assert held is not None
    assert held.pauses
    assert "cluster" in held.message


def test_a_third_goes_slowly_and_in_no_order() -> None:
    """Partial lets a tenth go, and nobody's tenant first."""
    cluster = Cluster(1000, nodes=1000)

    turns = cluster.run(10, *range(350))

    assert 15 <= len(turns) <= 25
    assert turns != sorted(turns, key=lambda uid: int(uid[2:]))


def test_silent_node_is_held_while_others_go() -> None:
    """Its agent or its network may be what is broken."""
    cluster = Cluster(1000, nodes=50)
    on_node = [i for i in range(1000) if cluster.node(i) == "node-3"]

    turns = cluster.run(5, *on_node, 1)

    held = cluster.brakes.held(f"s-{on_node[0]}")
    assert turns == ["s-1"]
    assert held is not None
    assert held.message == "most Sessions of the node node-3 fell silent at once"


def test_silent_gateway_is_held() -> None:
    """Its Sessions are on all nodes, and fell silent together."""
    cluster = Cluster(1000, nodes=1000)
    cluster.brakes.count({CLUSTER: 1000} | {(ScopeKind.GATEWAY, f"{i}"): 0 for i in range(19)})

    assert cluster.run(5, *range(40)) == []


def test_silent_few_of_a_gateway_go() -> None:
    """Its other connections live, so it is not the gateway."""
    cluster = Cluster(1000, nodes=1000)
    cluster.brakes.count({CLUSTER: 1000, (ScopeKind.GATEWAY, "g"): 500})

    assert len(cluster.run(5, *range(40))) == 40


def test_held_go_when_their_gpu_is_idle_and_the_hold_is_over() -> None:
    """Memory is not kept for ever on suspicion, but a GPU that works, or may work, is spared."""
    cluster = Cluster(100)
    cluster.works |= dict.fromkeys((f"s-{i}" for i in range(50)), False)
    cluster.works |= dict.fromkeys((f"s-{i}" for i in range(50, 75)), True)
    cluster.run(2, *range(100))

    cluster.now += 30 * 60
    turns = cluster.run(60, *range(100))

    assert 10 <= len(turns) <= 14
    assert {int(uid[2:]) for uid in turns} <= set(range(50))


def test_leaving_full_is_told_after_two_calm_windows() -> None:
    """The sweep then gives everybody a whole threshold."""
    cluster = Cluster(100)
    cluster.run(1, *range(100))
    cluster.brakes.forget_all()

    left = []
    for _ in range(181):
        left.append(cluster.brakes.advance()[1])
        cluster.now += 1

    assert (left.index(True), left.count(True)) == (180, 1)


def test_heard_session_counts_no_more() -> None:
    """It was found fresh when somebody looked."""
    cluster = Cluster(100)
    cluster.silence(1)

    cluster.brakes.heard("s-1")

    assert list(cluster.brakes.overdue()) == []
    assert cluster.brakes.advance()[0] == []


def test_silence_ends_with_its_window() -> None:
    """Whoever is not found silent again was heard meanwhile."""
    cluster = Cluster(100)
    cluster.silence(*range(4), overdue=False)

    cluster.now += LIMITS.window.total_seconds() + 1
    cluster.brakes.advance()
    cluster.silence(4, overdue=False)

    assert list(cluster.brakes.overdue()) == []
    assert cluster.brakes.advance()[0] == []


def test_grant_that_nobody_used_lapses() -> None:
    """A turn of yesterday must not end a Session that falls silent today."""
    cluster = Cluster(100)
    cluster.silence(1)
    cluster.brakes.advance()

    cluster.now += 91
    cluster.brakes.advance()

    assert cluster.brakes.held("s-1") is not None


@pytest.mark.parametrize(
    ("silent", "whole"), [(range(0, 100, 10), True), (range(0, 90, 10), False)]
)
def test_whole_node_is_silent_only_with_its_last_session(silent: range, whole: bool) -> None:
    """Then its agent is asked before anybody goes."""
    cluster = Cluster(100)
    cluster.silence(*silent)
    cluster.brakes.advance()

    assert cluster.brakes.is_whole_node_silent("node-0") is whole


def test_turn_that_was_used_costs_no_second_one() -> None:
    """The Session has ended by then; its token belongs to another."""
    cluster = Cluster(100)
    cluster.silence(1)
    turns = cluster.brakes.advance()[0]

    cluster.now += 31

    assert turns == ["s-1"]
    assert cluster.brakes.advance()[0] == []


def test_whoever_is_found_silent_again_gets_another_turn() -> None:
    """The first one may have met a Redis that did not answer."""
    cluster = Cluster(100)
    cluster.silence(1)
    cluster.brakes.advance()
    cluster.now += 29
    cluster.silence(1)

    assert cluster.brakes.advance()[0] == []
    cluster.now += 2
    assert cluster.brakes.advance()[0] == ["s-1"]


def test_half_silent_node_slows_nobody_else() -> None:
    """Its own rate is a tenth; the cluster's stays as it is."""
    cluster = Cluster(1000, nodes=20)
    on_node = [i for i in range(1000) if cluster.node(i) == "node-3"][:20]
    others = [i for i in range(1000) if cluster.node(i) == "node-7"][:10]

    turns = cluster.run(1.5, *on_node, *others)

    assert {f"s-{i}" for i in others} <= set(turns)
    assert len(turns) == 11


def test_node_that_leaves_full_gives_its_own_sessions_a_fresh_start() -> None:
    """And leaves the watch of all others alone."""
    cluster = Cluster(1000, nodes=100)
    on_node = [i for i in range(1000) if cluster.node(i) == "node-3"]
    cluster.run(1, *on_node)
    cluster.brakes.forget_all()

    left = []
    for _ in range(182):
        cluster.silence(*on_node[:4])
        left.append(cluster.brakes.advance()[1])
        cluster.now += 1

    assert not any(left)
    assert cluster.brakes.relieved(node="node-3", gateway="") == cluster.now - 2
    assert cluster.brakes.relieved(node="node-4", gateway="g") is None


def test_relief_forgets_whom_it_held() -> None:
    """They are silent only from there on."""
    cluster = Cluster(100)
    cluster.run(1, *range(100))
    cluster.brakes.forget_all()
    cluster.brakes.advance()
    cluster.now += 180
    cluster.silence(1)

    assert cluster.brakes.advance() == ([], True)
    assert list(cluster.brakes.overdue()) == []


def test_old_relief_is_forgotten() -> None:
    """No list grows with every node that was ever silent."""
    cluster = Cluster(100)
    cluster.run(1, *range(100))
    cluster.brakes.forget_all()
    cluster.brakes.advance()
    cluster.now += 180
    cluster.brakes.advance()

    cluster.now += 86_401
    cluster.brakes.advance()

    assert cluster.brakes.relieved(node="node-1", gateway="g") is None


def test_only_the_overdue_behind_a_full_brake_are_paused() -> None:
    """A mere turn in the queue is no pause."""
    cluster = Cluster(1000, nodes=50)
    on_node = [i for i in range(1000) if cluster.node(i) == "node-3"]
    cluster.run(1, *on_node)
    cluster.silence(1, 2)
    cluster.silence(53, overdue=False)

    assert cluster.brakes.is_paused(f"s-{on_node[0]}")
    assert not cluster.brakes.is_paused("s-1")


def test_late_ones_are_not_paused() -> None:
    """They are not overdue, so nothing holds them."""
    cluster = Cluster(100)
    cluster.silence(*range(100), overdue=False)
    cluster.brakes.advance()

    assert not cluster.brakes.is_paused("s-1")


def test_a_brake_that_moves_says_how_far() -> None:
    """Under a name that the log's own level does not take."""
    cluster = Cluster(100)
    cluster.silence(*range(100))

    with capture_logs() as lines:
        cluster.brakes.advance()

    assert {line["brake"] for line in lines if line["event"] == "expiry brake"} == {"FULL"}


def test_idle_gpu_is_held_as_well_until_the_hold_is_over() -> None:
    """Full lets nobody go; an idle GPU only makes the wait end."""
    cluster = Cluster(1000, nodes=50)
    on_node = [i for i in range(1000) if cluster.node(i) == "node-3"]
    cluster.works |= dict.fromkeys((f"s-{i}" for i in on_node), False)

    assert cluster.run(60, *on_node) == []


def test_wait_ends_with_the_silence() -> None:
    """Whoever is not found silent again gets no turn later on."""
    cluster = Cluster(100)
    cluster.silence(*range(100))
    cluster.brakes.advance()

    cluster.now += LIMITS.window.total_seconds() + 1

    assert cluster.brakes.advance()[0] == []
    assert list(cluster.brakes.overdue()) == []
