"""The demo's story: seven Sessions come to life, five end in five ways, and all is checked."""

import json
import statistics
from dataclasses import dataclass, field
from typing import Any

import redis
from tests.demo import inspection
from tests.demo.follow import SessionFollower, phase_of
from tests.demo.table import console, evidence_table, gibibytes, show_until
from tests.support.operator_stack import AGENT_ACCOUNT, CONTROLLER_ACCOUNT, OperatorStack
from tests.support.processes import wait_until
from tests.support.session_api import SAMPLES

NAMESPACE = "gpu-demo"
DELETED = ("chat", "stubborn", "forker", "empty-handed")
CLOSED = ("notebook",)
ENDED = DELETED + CLOSED
STAYS, WAITS = "training", "unlabelled"
ALIVE = (*ENDED, STAYS)

REVIEWS = frozenset({"tokenreviews", "subjectaccessreviews"})
"""Questions sent by POST: they change nothing and are no writes."""

NEIGHBOURS = ("gpu-demo:chatty:history", "gpu-demo:cha", "other:chat:history", "gpu-demo:chat2")
"""Keys of nobody in the story that look much like one's own: they must survive."""


@dataclass
class Outcome:
    """What the last line reports, and everything that is not as it should be."""

    phases: dict[str, str] = field(default_factory=dict)
    evidence: list[dict[str, Any]] = field(default_factory=list)
    leaked_bytes: int = 0
    leaked_keys: int = 0
    leaked_processes: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Tell whether nothing is left and nothing is wrong."""
        return not (self.faults or self.leaked_bytes or self.leaked_keys or self.leaked_processes)

    def line(self) -> str:
        """Give the JSON of the last line."""
        totals = [sum(s["milliseconds"] for s in row["stages"]) for row in self.evidence]
        phases = list(self.phases.values())
        return json.dumps(
            {
                "sessions": len(phases),
                "destroyed": phases.count("Destroyed"),
                "active": phases.count("Active"),
                "pending": phases.count("Pending"),
                "leaked_bytes": self.leaked_bytes,
                "leaked_keys": self.leaked_keys,
                "leaked_processes": self.leaked_processes,
                "release_p50_ms": round(statistics.median(totals), 1) if totals else None,
                "release_max_ms": round(max(totals), 1) if totals else None,
            }
        )


class Story:
    """Tells the story on a running stack, chapter by chapter."""

    def __init__(self, stack: OperatorStack, follower: SessionFollower) -> None:
        self._stack = stack
        self._follower = follower
        self._born: set[inspection.Born] = set()
        self._idle_bytes = self._used_bytes()

    def tell(self) -> Outcome:
        """Tell all of it and return what came of it."""
        self._begin()
        self._end_five()
        outcome = Outcome()
        self._collect(outcome)
        self._check_gpus(outcome)
        self._check_redis(outcome)
        self._check_objects(outcome)
        return outcome

    def _begin(self) -> None:
        console.rule("kubectl apply -f manifests/samples/")
        self._stack.plane.kubectl("apply", "-f", SAMPLES)
        self._seed_redis()
        show_until(
            self._all_begun, self._follower, timeout=60, what="six Sessions to become Active"
        )
        for node in self._stack.nodes.values():
            self._born |= inspection.processes_of_pods(node, self._pod_uids(ENDED))
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
        show_until(self._all_ended, self._follower, timeout=60, what="five Sessions to end")

    def _all_ended(self) -> bool:
        phases = self._follower.phases()
        gone = all(self._follower.is_gone(name) for name in DELETED)
        return gone and all(phases[name] == "Destroyed" for name in ENDED)

    def _pod_uids(self, names: tuple[str, ...]) -> set[str]:
        return {
            pod["metadata"]["uid"]
            for pod in inspection.objects(self._stack.plane, "pods", NAMESPACE)
            if pod["metadata"]["name"] in names
        }

    def _seed_redis(self) -> None:
        with redis.Redis.from_url(self._stack.state.url) as client:
            for key in NEIGHBOURS:
                client.set(key, "not yours")
            for session in inspection.objects(self._stack.plane, "sessions", NAMESPACE):
                self._seed_session(client, session)

    @staticmethod
    def _seed_session(client: redis.Redis, session: dict[str, Any]) -> None:
        state = session["spec"].get("state", {})
        base = f"{NAMESPACE}:{session['metadata']['name']}"
        for key in state.get("keys", []):
            client.set(key, "x")
        for index in state.get("indexKeys", []):
            for number in range(20):
                client.set(f"{base}:part:{number}", "x")
                client.sadd(index, f"{base}:part:{number}")
        for prefix in state.get("keyPrefixes", []):
            for number in range(200):
                client.set(f"{prefix}{number}", "x")

    def _collect(self, outcome: Outcome) -> None:
        outcome.phases = self._follower.phases()
        writes = self._writes()
        for session in self._follower.sessions():
            name, status = session["metadata"]["name"], session.get("status", {})
            if name not in ENDED:
                continue
            release = status.get("release", {})
            outcome.evidence.append(
                {
                    "name": name,
                    "reason": status.get("reason", ""),
                    "verdict": release.get("verdict", ""),
                    "before": release.get("memoryBytesBefore", 0),
                    "after": release.get("memoryBytesAfter", 0),
                    "keys": release.get("keysCleared", 0),
                    "stages": release.get("stages", []),
                    "writes": writes.get(name, 0),
                }
            )
        console.print(evidence_table(outcome.evidence))
        expected = dict.fromkeys(ENDED, "Freed") | {"empty-handed": "NothingHeld"}
        for row in outcome.evidence:
            if row["verdict"] != expected[row["name"]]:
                outcome.faults.append(f"{row['name']} ended with verdict {row['verdict']!r}")
            if row["writes"] > 7:
                outcome.faults.append(f"{row['name']} cost {row['writes']} writes, more than 7")

    def _writes(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for request in self._stack.plane.mutating_requests():
            ours = request.user in (CONTROLLER_ACCOUNT, AGENT_ACCOUNT)
            if ours and request.namespace == NAMESPACE and request.resource not in REVIEWS:
                name = request.name.split(".")[0]
                counts[name] = counts.get(name, 0) + 1
        return counts

    def _used_bytes(self) -> int:
        nodes, library = self._stack.nodes.values(), self._stack.nvml_library
        return sum(gpu.used_bytes for node in nodes for gpu in inspection.gpus(node, library))

    def _check_gpus(self, outcome: Outcome) -> None:
        held = dict.fromkeys((STAYS, WAITS), 0)
        for node in self._stack.nodes.values():
            holders = [gpu.holders for gpu in inspection.gpus(node, self._stack.nvml_library)]
            for name in held:
                pids = {b.pid for b in inspection.processes_of_pods(node, self._pod_uids((name,)))}
                held[name] += sum(h.get(pid, 0) for h in holders for pid in pids)
        for name in (name for name, size in held.items() if not size):
            outcome.faults.append(f"{name} lost its GPU memory")
        outcome.leaked_bytes = self._used_bytes() - self._idle_bytes - sum(held.values())
        outcome.leaked_processes = sum(born.lives for born in self._born)

    def _check_redis(self, outcome: Outcome) -> None:
        left = inspection.keys(self._stack.state.url)
        bases = tuple(f"{NAMESPACE}:{name}" for name in ENDED)
        leaked = {
            key for key in left if key in bases or key.startswith(tuple(f"{b}:" for b in bases))
        }
        alive = {
            s["metadata"]["uid"]
            for s in self._follower.sessions()
            if s["metadata"]["name"] == STAYS
        }
        records = {
            key.removeprefix("gs:s:") for key in inspection.keys(self._stack.records.url, "gs:s:*")
        }
        outcome.leaked_keys = len(leaked) + len(records - alive)
        if alive - records:
            outcome.faults.append(f"{STAYS} has no record in Redis")
        for key in set(NEIGHBOURS) - left:
            outcome.faults.append(f"the neighbour's key {key} was removed")

    def _check_objects(self, outcome: Outcome) -> None:
        for session in inspection.objects(self._stack.plane, "sessions", NAMESPACE):
            name, finalizers = session["metadata"]["name"], session["metadata"].get("finalizers")
            if name in DELETED:
                outcome.faults.append(f"Session {name} still exists")
            if phase_of(session) == "Destroyed" and finalizers:
                outcome.faults.append(f"Session {name} still has {finalizers}")
        wait_until(lambda: not self._pod_uids(ENDED), timeout=15, what="the ended Pods to be gone")
