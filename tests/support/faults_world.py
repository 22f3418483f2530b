"""A crowd of Sessions that must outlive every fault, and words for faults."""

import time

import redis
from tests.support.clients_world import THRESHOLD, ClientsWorld
from tests.support.processes import Process, wait_until
from tests.support.redis_server import RedisServer

CROWD = ("lives-1", "lives-2", "lives-3")
NEVER_IDLE = {"idle": {"timeoutSeconds": 0}}

PATIENT = 20
"""Seconds for all clients of the crowd to start, on a busy machine, before silence counts."""

TWO_THRESHOLDS = 2 * THRESHOLD


class Crowd:
    """Sessions whose clients live all the time, in a namespace with others that do not."""

    def __init__(self, clients: ClientsWorld) -> None:
        self.world = clients
        self.stack = clients.stack
        spec = clients.beats(delay=PATIENT) | NEVER_IDLE
        for name in CROWD:
            clients.apply(clients.pod(name, "--memory=1Gi"), clients.session(name, **spec))
        for name in CROWD:
            clients.wait_phase(name, "Active")
        self.members = {name: clients.client(name) for name in CROWD}
        self.wait_heard()
        for name in CROWD:
            clients.wait(lambda n=name: self._counts(n), f"silence of {name} to count")
        self._pods = {name: self.world.status(name)["podUID"] for name in CROWD}

    def wait_heard(self) -> None:
        """Wait until every client beats again, into the Redis that counts."""
        for name in CROWD:
            self.world.wait(lambda n=name: self.heard(n), f"a beat of {name}")

    def heard(self, name: str) -> bool:
        """Tell whether a Session's client was heard within the last second or so."""
        beat = int(self.world.record(name).get("hb", 0))
        return self.world.connections(name) > 0 and self._now() - beat < 1500

    def _counts(self, name: str) -> bool:
        """Tell whether a Session's first beat was due, so that silence could end it."""
        return int(self.world.record(name).get("first", 0)) < self._now()

    def _now(self) -> int:
        with self.stack.redis() as client:
            seconds, micros = client.time()
        return seconds * 1000 + micros // 1000

    def assert_alive(self) -> None:
        """Make sure that no end has begun for anyone here, and that all clients still beat."""
        for name, pod in self._pods.items():
            status = self.world.status(name)
            assert (status["phase"], status["podUID"]) == ("Active", pod), name
            assert self.members[name].running, name

    def one_who_dies(self, name: str) -> Process:
        """Start a Session with a client for a test to end."""
        return self.world.start_with_client(name, **NEVER_IDLE)


def freeze(*processes: Process) -> None:
    """Stop programs for two thresholds, and let them go on."""
    for process in processes:
        process.pause()
    time.sleep(TWO_THRESHOLDS)
    for process in processes:
        process.resume()


def copy_from(replica: RedisServer, primary: RedisServer) -> None:
    """Make one server the other's replica and wait until it has copied everything."""
    with redis.Redis.from_url(replica.url, decode_responses=True) as client:
        client.replicaof("127.0.0.1", str(primary.port))
        wait_until(
            lambda: client.info("replication")["master_link_status"] == "up",
            timeout=10,
            what="the replica",
        )


def promote(replica: RedisServer) -> None:
    """Make a replica a primary, with what it has."""
    with redis.Redis.from_url(replica.url) as client:
        client.replicaof("NO", "ONE")
