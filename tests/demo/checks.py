"""Compares one namespace with what should have become of it, from outside the product."""

from collections.abc import Iterable, Mapping
from typing import Any

import redis
from tests.demo import inspection
from tests.demo.follow import SessionFollower, phase_of
from tests.demo.outcome import Outcome
from tests.support.operator_stack import AGENT_ACCOUNT, CONTROLLER_ACCOUNT, OperatorStack
from tests.support.processes import ProcessFailedError, wait_until

REVIEWS = frozenset({"tokenreviews", "subjectaccessreviews"})
"""Questions sent by POST: they change nothing and are no writes."""

SETTLE_SECONDS = 15.0
"""A guard against hanging: after Destroyed, the rest takes some tenths of a second."""


class Checks:
    """Looks at raw NVML, Redis, /proc and kubectl; faults go into the outcome.

    What held GPU memory when it was made is not this namespace's.
    """

    def __init__(self, stack: OperatorStack, follower: SessionFollower, namespace: str) -> None:
        self._stack = stack
        self._follower = follower
        self._namespace = namespace
        self._born: dict[str, set[inspection.Born]] = {}
        self._bytes_before = self._used_bytes()

    def seed_redis(self) -> None:
        """Give every Session the keys that its spec names, and the index keys their members."""
        with redis.Redis.from_url(self._stack.state.url) as client:
            for session in inspection.objects(self._stack.plane, "sessions", self._namespace):
                self._seed_session(client, session)

    def _seed_session(self, client: redis.Redis, session: dict[str, Any]) -> None:
        state = session["spec"].get("state", {})
        base = f"{self._namespace}:{session['metadata']['name']}"
        for key in state.get("keys", []):
            client.set(key, "x")
        for index in state.get("indexKeys", []):
            for number in range(20):
                client.set(f"{base}:part:{number}", "x")
                client.sadd(index, f"{base}:part:{number}")
        for prefix in state.get("keyPrefixes", []):
            for number in range(200):
                client.set(f"{prefix}{number}", "x")

    def note_processes(self, names: Iterable[str]) -> None:
        """Remember which processes run for each of these Sessions."""
        for name in names:
            found = [
                inspection.processes_of_pods(node, self.pod_uids((name,)))
                for node in self._stack.nodes.values()
            ]
            self._born[name] = set().union(*found)

    def pod_uids(self, names: Iterable[str]) -> set[str]:
        """List the uids of the Pods of these names that exist."""
        wanted = set(names)
        return {
            pod["metadata"]["uid"]
            for pod in inspection.objects(self._stack.plane, "pods", self._namespace)
            if pod["metadata"]["name"] in wanted
        }

    def take_evidence(self, outcome: Outcome, verdicts: Mapping[str, str]) -> list[dict[str, Any]]:
        """Collect what was proven of those who ended, and compare it with what is true."""
        outcome.phases |= self._follower.phases()
        writes, rows = self._writes(), []
        for session in self._follower.sessions():
            name = session["metadata"]["name"]
            if name not in verdicts or phase_of(session) != "Destroyed":
                continue
            row = _evidence(session) | {"writes": writes.get(name, 0)}
            rows.append(row)
            if row["verdict"] != verdicts[name]:
                outcome.faults.append(f"{name} ended with verdict {row['verdict']!r}")
            if row["writes"] > 7:
                outcome.faults.append(f"{name} cost {row['writes']} writes, more than 7")
        outcome.evidence += rows
        return rows

    def _writes(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for request in self._stack.plane.mutating_requests():
            ours = request.user in (CONTROLLER_ACCOUNT, AGENT_ACCOUNT)
            if ours and request.namespace == self._namespace and request.resource not in REVIEWS:
                name = request.name.split(".")[0]
                counts[name] = counts.get(name, 0) + 1
        return counts

    def _used_bytes(self) -> int:
        nodes, library = self._stack.nodes.values(), self._stack.nvml_library
        return sum(gpu.used_bytes for node in nodes for gpu in inspection.gpus(node, library))

    def check_gpus(self, outcome: Outcome, *, ended: Iterable[str], stays: Iterable[str]) -> None:
        """Nobody who ended holds a byte or runs; everybody else runs on and holds memory."""
        held = dict.fromkeys(stays, 0)
        for node in self._stack.nodes.values():
            holders = [gpu.holders for gpu in inspection.gpus(node, self._stack.nvml_library)]
            for name in held:
                pids = {b.pid for b in inspection.processes_of_pods(node, self.pod_uids((name,)))}
                held[name] += sum(h.get(pid, 0) for h in holders for pid in pids)
        for name, size in held.items():
            if not size:
                outcome.faults.append(f"{name} lost its GPU memory")
            if not all(born.lives for born in self._born.get(name, ())):
                outcome.faults.append(f"{name} lost a process")
        outcome.leaked_bytes += self._used_bytes() - self._bytes_before - sum(held.values())
        outcome.leaked_processes += sum(b.lives for name in ended for b in self._born.get(name, ()))

    def check_state(self, outcome: Outcome, ended: Iterable[str]) -> None:
        """Nothing is left in the tenants' Redis of those who ended."""
        bases = tuple(f"{self._namespace}:{name}" for name in ended)
        inside = tuple(f"{base}:" for base in bases)
        left = inspection.keys(self._stack.state.url)
        outcome.leaked_keys += sum(key in bases or key.startswith(inside) for key in left)

    def check_records(self, outcome: Outcome, alive: Mapping[str, str]) -> None:
        """Those who live, and nobody else, have records; `alive` gives their names by uid."""
        records, tokens, names = (self._left("gs:s:"), self._left("gs:t:"), self._left("gs:n:"))
        outcome.leaked_keys += len(records - alive.keys()) + len(tokens - alive.keys())
        outcome.leaked_keys += len(names - set(alive.values()))
        for uid in alive.keys() - records:
            outcome.faults.append(f"{alive[uid]} has no record in Redis")

    def _left(self, prefix: str) -> set[str]:
        found = inspection.keys(self._stack.records.url, f"{prefix}*")
        return {key.removeprefix(prefix) for key in found}

    def check_objects(self, outcome: Outcome, *, deleted: Iterable[str]) -> None:
        """No deleted Session exists, no finalizer holds a Destroyed one, and its Pod goes."""
        wanted = set(deleted)
        ended = set(wanted)
        for session in inspection.objects(self._stack.plane, "sessions", self._namespace):
            name, finalizers = session["metadata"]["name"], session["metadata"].get("finalizers")
            if name in wanted:
                outcome.faults.append(f"Session {name} still exists")
            if phase_of(session) == "Destroyed":
                ended.add(name)
                if finalizers:
                    outcome.faults.append(f"Session {name} still has {finalizers}")
        what = "the ended Pods to be gone"
        try:
            wait_until(lambda: not self.pod_uids(ended), timeout=SETTLE_SECONDS, what=what)
        except ProcessFailedError as error:
            outcome.faults.append(str(error))


def _evidence(session: dict[str, Any]) -> dict[str, Any]:
    status = session.get("status", {})
    release = status.get("release", {})
    return {
        "name": session["metadata"]["name"],
        "reason": status.get("reason", ""),
        "verdict": release.get("verdict", ""),
        "before": release.get("memoryBytesBefore", 0),
        "after": release.get("memoryBytesAfter", 0),
        "keys": release.get("keysCleared", 0),
        "stages": release.get("stages", []),
    }


def uids_of(follower: SessionFollower, names: Iterable[str]) -> dict[str, str]:
    """Give `namespace/name` of these Sessions by their uids."""
    wanted = set(names)
    found = (session["metadata"] for session in follower.sessions())
    return {m["uid"]: f"{m['namespace']}/{m['name']}" for m in found if m["name"] in wanted}
