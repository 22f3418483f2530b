"""The first act: seven Sessions come to life, five end as they are told, all is checked."""

import redis
from tests.demo import inspection
from tests.demo.checks import Checks, uids_of
from tests.demo.follow import SessionFollower
from tests.demo.outcome import Outcome
from tests.demo.table import Screen, console, evidence_table, gibibytes
from tests.support.operator_stack import OperatorStack
from tests.support.placement import place_pods
from tests.support.session_api import SAMPLES

NAMESPACE = "gpu-demo"
DELETED = ("chat", "stubborn", "forker", "empty-handed")
CLOSED = ("notebook",)
ENDED = DELETED + CLOSED
STAYS, WAITS = "training", "unlabelled"
ALIVE = (*ENDED, STAYS)
VERDICTS = dict.fromkeys(ENDED, "Freed") | {"empty-handed": "NothingHeld"}

NEIGHBOURS = ("gpu-demo:chatty:history", "gpu-demo:cha", "other:chat:history", "gpu-demo:chat2")
"""Keys of nobody in the story that look much like one's own: they must survive."""


class Story:
    """Tells the first act on a running stack: ends that somebody asks for."""

    def __init__(self, stack: OperatorStack, follower: SessionFollower) -> None:
        self._stack = stack
        self._follower = follower
        self._screen = Screen(follower, stack.programs)
        self._checks = Checks(stack, follower, NAMESPACE)

    def tell(self, outcome: Outcome) -> None:
        """Tell all of it and add what came of it."""
        self._begin()
        self._end_five()
        console.print(evidence_table(self._checks.take_evidence(outcome, VERDICTS)))
        self._checks.check_gpus(outcome, ended=ENDED, stays=(STAYS, WAITS))
        self._checks.check_state(outcome, ENDED)
        self._checks.check_records(outcome, uids_of(self._follower, (STAYS,)))
        self._checks.check_objects(outcome, deleted=DELETED)
        self._check_neighbours(outcome)

    def _begin(self) -> None:
        console.rule("kubectl apply -f manifests/samples/")
        self._stack.plane.kubectl("apply", "-f", SAMPLES)
        place_pods(self._stack.plane, NAMESPACE, tuple(self._stack.nodes))
        self._seed_redis()
        self._screen.show_until(self._all_begun, timeout=60, what="six Sessions to become Active")
        self._screen.show()
        self._checks.note_processes((*ALIVE, WAITS))
        for node in self._stack.nodes.values():
            for gpu in inspection.gpus(node, self._stack.nvml_library):
                held = ", ".join(f"pid {p} {gibibytes(b)}" for p, b in gpu.holders.items())
                console.print(f"{node.name} {gpu.uuid[:12]} {gibibytes(gpu.used_bytes)}: {held}")

    def _all_begun(self) -> bool:
        phases = self._follower.phases()
        return phases.get(WAITS) == "Pending" and all(phases.get(n) == "Active" for n in ALIVE)

    def _end_five(self) -> None:
        console.rule("four are deleted, one is closed")
        kubectl = self._stack.plane.kubectl
        close = '{"spec":{"desiredPhase":"Destroyed"}}'
        kubectl("patch", "session", *CLOSED, "-n", NAMESPACE, "--type=merge", "-p", close)
        kubectl("delete", "session", *DELETED, "-n", NAMESPACE, "--wait=false")
        self._screen.show_until(self._all_ended, timeout=60, what="five Sessions to end")
        self._screen.show()

    def _all_ended(self) -> bool:
        phases = self._follower.phases()
        gone = all(self._follower.is_gone(name) for name in DELETED)
        return gone and all(phases[name] == "Destroyed" for name in ENDED)

    def _seed_redis(self) -> None:
        with redis.Redis.from_url(self._stack.state.url) as client:
            for key in NEIGHBOURS:
                client.set(key, "not yours")
        self._checks.seed_redis()

    def _check_neighbours(self, outcome: Outcome) -> None:
        for key in set(NEIGHBOURS) - inspection.keys(self._stack.state.url):
            outcome.faults.append(f"the neighbour's key {key} was removed")
