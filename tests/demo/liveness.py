"""The second act: seven Sessions that nobody deletes; four fall silent in truth, and end.

Periods are short so that it can be watched: a beat each second, three missing ones are an
end, five idle seconds too. Redis is away for 20 s, more than six of these thresholds.
"""

import signal
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.demo.checks import Checks, uids_of
from tests.demo.follow import SessionFollower, Sight
from tests.demo.outcome import Outcome
from tests.demo.table import Screen, console, evidence_table
from tests.support.clients_world import ClientsWorld
from tests.support.operator_stack import OperatorStack
from tests.support.processes import Process, ProcessFailedError
from tests.support.session_world import Object

NAMESPACE = "gpu-clients"

CONTROLLER = {
    "LEASE_DURATION": "PT30S",  # nobody stands by for it, and no kubelet starts it again where a
    "LEASE_RENEW": "PT20S",  # machine that stalls for longer than the default's 6 s has cost it
    "USAGE_PERIOD": "PT1S",
    "DEADLINE_LEASE": "PT2S",
    "LONGEST_SWEEP_GAP": "PT2S",
    "REDIS_TIMEOUT": "PT1S",
}
AGENTS = {"USAGE_WINDOW": "PT10S", "OBSERVE_PERIOD": "PT1S"}
GATEWAYS = {"LEASE_TTL": "PT2S"}
"""The settings that follow the short periods; whatever else is the product's own default."""

THRESHOLD_SECONDS, DELAY_SECONDS, IDLE_SECONDS = 3, 5, 5
OUTAGE_SECONDS = 20.0
PATIENCE_SECONDS = 60.0
"""A guard against hanging: two busy cores need a third of it."""

BEATS = {
    "heartbeat": {
        "periodSeconds": 1,
        "failureThreshold": THRESHOLD_SECONDS,
        "initialDelaySeconds": DELAY_SECONDS,
    }
}
NO_BEATS = {"heartbeat": {"periodSeconds": 0}}
NEVER_IDLE, SOON_IDLE = ({"idle": {"timeoutSeconds": seconds}} for seconds in (0, IDLE_SECONDS))


class Role(NamedTuple):
    """A Session of the act: what it asks for, and how its client begins."""

    spec: Object
    doing: str
    options: tuple[str, ...] | None = ()
    """Of `gpusession beat`; None where there is no client at all."""
    workload: tuple[str, ...] = ("--memory=4Gi",)
    node: str = "node-a"


STATE = {
    "state": {
        "keys": [f"{NAMESPACE}:frozen:chat"],
        "keyPrefixes": [f"{NAMESPACE}:frozen:kv:"],
    }
}

ROLES = {
    "browser": Role({"disconnectGraceMilliseconds": 500} | BEATS | NEVER_IDLE, "beats"),
    "frozen": Role(BEATS | NEVER_IDLE | STATE, "beats", node="node-b"),
    "traveller": Role({"destroyGraceSeconds": 30} | BEATS | NEVER_IDLE, "beats"),
    "forgotten": Role(BEATS | SOON_IDLE, "beats, asks for nothing", node="node-b"),
    "night-job": Role(
        NO_BEATS | SOON_IDLE,
        "none; its GPU works",
        options=None,
        workload=("--memory=12Gi", "--busy=80"),
    ),
    "talker": Role(
        BEATS | {"idle": {"timeoutSeconds": 15, "signals": ["Client"]}},
        "beats, and is used",
        options=("--activity",),
        node="node-b",
    ),
    "late": Role(BEATS | NEVER_IDLE, "beats"),
}
ENDS = {
    "browser": "Disconnected",
    "frozen": "HeartbeatLost",
    "forgotten": "Idle",
    "late": "HeartbeatLost",
}
SILENCED = ("browser", "frozen", "late")
"""Those who end only because of what the story does to their clients."""

STAYS = ("traveller", "night-job", "talker")

TOLD_TO_STOP = 3
"""Exit code of `gpusession beat` when its Session has ended."""


class SecondAct:
    """Tells it chapter by chapter, on the stack on which the first act was told."""

    _clients: dict[str, Process]

    def __init__(
        self, stack: OperatorStack, follower: SessionFollower, clients: ClientsWorld
    ) -> None:
        self._stack = stack
        self._follower = follower
        self._world = clients
        self._clients = {}
        self._doing = {name: role.doing for name, role in ROLES.items()}
        self._screen = Screen(follower, stack.programs, doing=self._doing)
        self._checks = Checks(stack, follower, NAMESPACE)
        self._silenced: set[str] = set()
        self._too_early: set[str] = set()
        self._away = 0.0

    def tell(self, outcome: Outcome, earlier: SessionFollower, lives_on: Iterable[str]) -> None:
        """Tell all of it; `lives_on` are Sessions of `earlier` that must outlive it too."""
        kept = tuple(lives_on)
        try:
            self._chapters()
        except (TimeoutError, ProcessFailedError) as error:
            outcome.faults.append(str(error))
        self._judge(outcome)
        self._check_clients(outcome)
        wrong = [name for name in kept if any(s.is_end for s in earlier.history(name))]
        outcome.wrong_ends += wrong
        outcome.survived += len(kept) - len(wrong)
        verdicts = dict.fromkeys(ENDS, "Freed")
        console.print(evidence_table(self._checks.take_evidence(outcome, verdicts)))
        self._checks.check_gpus(outcome, ended=ENDS, stays=STAYS)
        self._checks.check_state(outcome, ENDS)
        alive = uids_of(self._follower, STAYS) | uids_of(earlier, kept)
        self._checks.check_records(outcome, alive)
        self._checks.check_objects(outcome, deleted=())

    def _chapters(self) -> None:
        self._begin()
        self._fall_silent()
        self._lose_redis()
        self._end_late()

    def _begin(self) -> None:
        console.rule("seven Sessions with clients: three missed beats, or 5 s idle, are an end")
        for name, role in ROLES.items():
            if role.options is not None:
                self._clients[name] = self._world.client(name, *role.options)
        pods = [self._world.pod(n, *r.workload, node=r.node) for n, r in ROLES.items()]
        sessions = [self._world.session(n, **r.spec) for n, r in ROLES.items()]
        self._world.apply(*pods, *sessions)
        self._checks.seed_redis()
        self._wait(self._all_begun, "seven Sessions to be Active and their clients connected")
        self._checks.note_processes(ROLES)

    def _all_begun(self) -> bool:
        phases = self._follower.phases()
        active = [name for name in ROLES if phases.get(name) == "Active"]
        return len(active) == len(ROLES) and self._all_connected(_with_clients())

    def _all_connected(self, names: Iterable[str]) -> bool:
        with self._stack.redis() as client:
            records = [client.hgetall(f"gs:s:{u}") for u in uids_of(self._follower, names)]
        return all(
            any(field.startswith("c:") and int(value) for field, value in record.items())
            for record in records
        )

    def _fall_silent(self) -> None:
        self._do("browser", "closes its connection", signal.SIGTERM)
        self._do("frozen", "hangs: connected, and silent", signal.SIGSTOP)
        self._do("traveller", "is in a tunnel: silent", signal.SIGSTOP)
        self._wait(lambda: self._last("traveller").phase == "PendingDestroy", "traveller's grace")
        self._do("traveller", "is back within its 30 s", signal.SIGCONT)
        self._wait(lambda: self._last("traveller").phase == "Active", "traveller to be back")
        self._wait_for_ends("browser", "frozen")

    def _lose_redis(self) -> None:
        console.rule(f"Redis crashes with all it knows, and is away for {OUTAGE_SECONDS:g} s")
        hearable = ("late", "talker", "traveller")
        began = time.monotonic()
        self._stack.records.kill()
        for name in hearable:
            self._doing[name] = "beats, and nobody can hear it"
        over = began + OUTAGE_SECONDS
        self._screen.show_until(
            lambda: time.monotonic() >= over, timeout=2 * OUTAGE_SECONDS, what="the outage to end"
        )
        self._screen.show()
        self._stack.records.start()
        self._away = time.monotonic() - began
        console.rule("Redis is back, empty: records and tokens are made anew")
        self._wait(lambda: self._all_connected(hearable), "the clients to be heard again")
        for name in hearable:
            self._doing[name] = "is heard again"

    def _end_late(self) -> None:
        self._do("late", "hangs: connected, and silent", signal.SIGSTOP)
        self._wait_for_ends("late", "forgotten")
        time.sleep(THRESHOLD_SECONDS)  # whoever is wrongly taken for silent ends by now
        self._screen.show()

    def _do(self, name: str, doing: str, number: int) -> None:
        if name in SILENCED and self._last(name).is_end:
            self._too_early.add(name)
        self._silenced.add(name)
        self._doing[name] = doing
        console.print(f"  client of {name}: {doing}")
        self._clients[name].signal(number)

    def _last(self, name: str) -> Sight:
        return (self._follower.history(name) or [Sight("", "", "", is_deleted=False)])[-1]

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        self._screen.show_until(done, timeout=PATIENCE_SECONDS, what=what)

    def _wait_for_ends(self, *names: str) -> None:
        what = f"{', '.join(names)} to end"
        self._wait(lambda: all(self._last(n).phase == "Destroyed" for n in names), what)

    def _judge(self, outcome: Outcome) -> None:
        """Say who ended that should not have, and who did not that should."""
        outcome.outage_seconds = self._away
        outcome.survived = sum(self._last(name).phase == "Active" for name in STAYS)
        for name in ROLES:
            history = self._follower.history(name)
            if name in ENDS:
                self._judge_end(name, history, outcome)
            elif name == "traveller" and _has_returned(history):
                outcome.returned += 1
            elif any(sight.is_end for sight in history):
                outcome.wrong_ends.append(f"{name} ({self._last(name).reason})")

    def _judge_end(self, name: str, history: list[Sight], outcome: Outcome) -> None:
        reasons = {sight.reason for sight in history if sight.is_end}
        early = name in self._too_early or (name in SILENCED and name not in self._silenced)
        if reasons - {ENDS[name]} or (reasons and early):
            outcome.wrong_ends.append(f"{name} ({', '.join(sorted(reasons))})")
        elif self._last(name).phase != "Destroyed":
            outcome.missing_ends.append(name)

    def _check_clients(self, outcome: Outcome) -> None:
        """See that a client was told of its Session's end, and that the others go on."""
        told = self._clients["forgotten"]
        if told.running or told.exit_code() != TOLD_TO_STOP:
            outcome.faults.append("the client of forgotten was not told of its end")
        for name in ("talker", "traveller"):
            if not self._clients[name].running:
                outcome.faults.append(f"the client of {name} gave up")


def _with_clients() -> list[str]:
    return [name for name, role in ROLES.items() if role.options is not None]


def _has_returned(history: list[Sight]) -> bool:
    """Tell whether a Session was in its grace once, for its silence, and is Active again."""
    phases = [sight.phase for sight in history if sight.phase in ("Active", "PendingDestroy")]
    changes = [phase for at, phase in enumerate(phases) if at == 0 or phases[at - 1] != phase]
    ends = [sight for sight in history if sight.is_end]
    kept = all((s.reason, s.released) == ("HeartbeatLost", "DestroyGrace") for s in ends)
    return kept and changes == ["Active", "PendingDestroy", "Active"]
