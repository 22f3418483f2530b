"""Every knob of every process, one class each: environment `GPUSESSION_*`, optional YAML.

Unknown keys are refused. Each field says its unit and why its default is what it is.
Rules and adapters never see these classes: `main.py` hands them plain values.
"""

import socket
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=1, le=65535)]


class ProcessSettings(BaseSettings):
    """What every process has."""

    model_config = SettingsConfigDict(
        env_prefix="GPUSESSION_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest level that is logged."""

    listen_host: IPv4Address | IPv6Address = IPv4Address("0.0.0.0")  # noqa: S104
    """Address to listen on; a pod has one, and NetworkPolicy says who may come."""

    metrics_port: Port = 9090
    """Plain HTTP for /metrics, /healthz and /readyz."""

    kubeconfig: Path | None = None
    """Kubeconfig to log in with; unset means the pod's own ServiceAccount."""

    kube_timeout: timedelta = timedelta(seconds=10)
    """Longest wait for one API call: twice the 5 s that a loaded apiserver may take."""

    state_redis_url: SecretStr | None = None
    """Redis with tenants' Session state; unset means that no Session may have `spec.state`."""

    redis_timeout: timedelta = timedelta(seconds=5)
    """Longest wait for one Redis command; a SCAN step of 1,000 keys takes 1 ms."""

    @property
    def state_url(self) -> str | None:
        """The address of the tenants' Redis as a client needs it, secret and all."""
        url = self.state_redis_url
        return None if url is None else url.get_secret_value()


class ControllerSettings(ProcessSettings):
    """`gpusession controller`."""

    redis_url: SecretStr = SecretStr("redis://localhost:6379/0")
    """Redis with our own control records; never the tenants' database."""

    namespace: str = "gpusession-system"
    """Where the controller runs, and where its Lease is."""

    identity: str = Field(default_factory=socket.gethostname)
    """Who this is in the Lease: the Pod's name, so that a restarted container takes over
    from its own earlier life at once."""

    lease_name: str = "gpusession-controller"
    """The Lease that says which controller is active."""

    lease_duration: timedelta = timedelta(seconds=9)
    """How long others wait for a silent leader; with retries and a list, 15 s to take over."""

    lease_renew: timedelta = timedelta(seconds=6)
    """How long a leader acts after its last renewal; two thirds, as client-go's 10 of 15 s."""

    lease_retry: timedelta = timedelta(seconds=2)
    """Between two renewals or tries, as client-go's."""

    agent_namespace: str = "gpusession-agents"
    """Where the agents run: a namespace of its own, since they are privileged."""

    agent_selector: str = "app.kubernetes.io/name=gpusession-agent"
    """Label selector of the agents' Pods; a Pod's node, IP and first port lead to it."""

    agent_server_name: str = "gpusession-agent.gpusession-agents.svc"
    """The DNS name that every agent's certificate carries."""

    agent_ca_file: Path = Path("/etc/gpusession/tls/ca.crt")
    """CA of the agents' certificates."""

    agent_token_file: Path = Path("/var/run/secrets/gpusession/agent-token")
    """Projected ServiceAccount token for audience `gpusession-agent`; kubelet renews it."""

    agent_timeout: timedelta = timedelta(seconds=10)
    """Longest wait for an agent beyond the grace of the order: ladder 0.8 s, Redis 5 s."""

    workers: Annotated[int, Field(ge=1, le=1024)] = 32
    """Sessions worked on at once; one waits mostly for its agent."""

    api_connections: Annotated[int, Field(ge=1, le=1024)] = 64
    """Open connections to kube-apiserver; it bounds our share of its seats."""

    pending_report_after: timedelta = timedelta(seconds=3)
    """How old a waiting Session gets before its status says so; spares most a write.

    creationTimestamp has whole seconds, so it is two seconds at least: enough for a
    scheduler and a warm image."""

    sweep_period: timedelta = timedelta(milliseconds=250)
    """Between two sweeps of the deadlines in Redis: a quarter of the second within which an
    end is to be seen. One costs Redis 0.1 ms where nothing is due."""

    longest_sweep_gap: timedelta = timedelta(seconds=5)
    """Between two sweeps that both saw Redis; after a longer one everybody has a whole
    threshold again. Twenty sweeps: less would be a busy machine."""

    longest_sweep_stall: timedelta = timedelta(seconds=1)
    """The same, but after it nobody ends by silence for `longest_sweep_gap`: gateways, which
    wait for Redis for so long (`redis_timeout`), and their clients come first."""

    clock_error: timedelta = timedelta(seconds=1)
    """How far Redis' clock may go apart from ours between two sweeps. NTP slews 0.5 ms/s."""

    census_period: timedelta = timedelta(seconds=5)
    """Between two counts of all Sessions: brakes' totals and lifetimes; 0.1 s per 100,000."""

    usage_period: timedelta = timedelta(seconds=60)
    """Between two questions to each agent whose GPU works: one call per node."""

    deadline_lease: timedelta = timedelta(seconds=30)
    """How long a due record is left alone, while somebody acts on it."""

    brake_minimum: Annotated[int, Field(ge=1)] = 5
    """Fewer silent Sessions than this never set the brake."""

    brake_partial_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of a scope's Sessions silent at once from which only a tenth goes on ending."""

    brake_full_share: Annotated[float, Field(gt=0, le=1)] = 0.55
    """Share from which nobody ends: as kube-controller-manager's unhealthy-zone-threshold."""

    brake_share_per_second: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Share of all Sessions that silence may end per second; one at least."""

    brake_window: timedelta = timedelta(seconds=90)
    """How long a silence counts; the brake opens after two such windows. One threshold."""

    brake_hold: timedelta = timedelta(minutes=30)
    """Longest that a full brake holds Sessions whose GPU is idle."""

    resync_period: timedelta = timedelta(seconds=60)
    """Between two lists that find missed events; also how stale a watch may go unseen."""

    rebind_period: timedelta = timedelta(seconds=300)
    """Between two repeats of an Active Session's bind, which heal a lost ledger."""

    retry_base: timedelta = timedelta(milliseconds=200)
    """First wait after a failure; doubles with jitter."""

    retry_cap: timedelta = timedelta(seconds=30)
    """Longest wait between two tries: how late a repaired fault is noticed."""

    watch_stale_after: timedelta = timedelta(seconds=150)
    """Watch behind the list for this long: /healthz fails. Two resyncs and a margin."""

    watch_open_timeout: timedelta = timedelta(seconds=60)
    """A leader that has not begun to watch by then ends, and starts anew. Kopf itself tries
    for 54 s; the first sweep finds in a minute what it has missed."""

    drain_timeout: timedelta = timedelta(seconds=15)
    """SIGTERM: time for work in hand, half of the Pod's default 30 s grace."""


class AgentSettings(ProcessSettings):
    """`gpusession agent`."""

    node_name: str
    """The Node this agent serves (downward API `spec.nodeName`)."""

    port: Port = 8443
    """HTTPS port of the agent's API."""

    tls_cert_file: Path = Path("/etc/gpusession/tls/tls.crt")
    """Server certificate; it and its key are read again when they change."""

    tls_key_file: Path = Path("/etc/gpusession/tls/tls.key")
    """Its private key."""

    allowed_caller: str = "system:serviceaccount:gpusession-system:gpusession-controller"
    """The one user name that TokenReview may return for a caller."""

    token_cache: timedelta = timedelta(seconds=30)
    """How long a good TokenReview is believed; a revoked caller lives on that long."""

    ledger_file: Path = Path("/var/lib/gpusession/ledger.sqlite")
    """SQLite file on the node's disk; it outlives the agent's Pod."""

    pod_resources_socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    """kubelet's socket: it tells which GPU a Pod has, and its peer's pid proves that we share
    kubelet's pid namespace. Mount its folder: a restarted kubelet makes a new socket."""

    pod_resources_timeout: timedelta = timedelta(milliseconds=500)
    """Longest wait for kubelet to tell a Pod's GPUs, which takes it 5 ms; a bind that goes
    without is mended by the next one."""

    nvml_timeout: timedelta = timedelta(milliseconds=500)
    """Longest wait for one look at NVML; a sick GPU hangs calls for ever."""

    observe_period: timedelta = timedelta(seconds=5)
    """Between two looks at bound Pods, which note who was seen holding memory."""

    busy_utilization_percent: Annotated[int, Field(ge=1, le=100)] = 1
    """Least GPU utilisation that makes a Session busy. An idle CUDA context shows 0 and 1 is
    the least that NVML tells: more would call small models idle, and end those who use them."""

    usage_window: Annotated[timedelta, Field(ge=timedelta(seconds=10))] = timedelta(seconds=60)
    """What /v1/usage is about; NotBusy needs all of it. The controller asks once a minute."""

    demo_mode: bool = False
    """Allows proc_root and cgroup_root; the shipped image refuses them without it."""

    proc_root: Path = Path("/proc")
    """procfs to read; another one only in demo mode."""

    cgroup_root: Path = Path("/sys/fs/cgroup")
    """cgroup file system to read; another one only in demo mode."""


class GatewaySettings(ProcessSettings):
    """`gpusession gateway`."""

    redis_url: SecretStr = SecretStr("redis://localhost:6379/0")
    """Redis with our own control records; never the tenants' database."""

    redis_timeout: timedelta = timedelta(seconds=1)
    """Longest wait for one command: a client gets its 503 within `answer_timeout`."""

    identity: str = Field(default_factory=socket.gethostname)
    """Name of this gateway in Redis, the Pod's; each registration adds a random part."""

    port: Port = 8080
    """HTTP and WebSocket for clients; TLS is spoken where a certificate is given."""

    tls_cert_file: Path | None = None
    """Server certificate; unset where an ingress or mesh speaks TLS. Read again on change."""

    tls_key_file: Path | None = None
    """Its private key."""

    allowed_origins: frozenset[str] = frozenset()
    """Origins of web pages that may connect, as `https://host`; other clients send none."""

    connections: Annotated[int, Field(ge=1, le=64)] = 8
    """Open connections to Redis; one carries 20,000 beats a second, eight wait less."""

    lease_ttl: timedelta = timedelta(seconds=10)
    """How long this gateway counts as living after a word to Redis; renewed four times.

    Cut off for longer, it closes every socket, so that clients find another one."""

    ping_period: timedelta = timedelta(seconds=30)
    """Between two pings; proxies cut what is silent for longer. A pong is a beat, so a client
    of shorter heartbeats is pinged sooner where nothing is heard of it."""

    silence_limit: timedelta = timedelta(seconds=90)
    """Three missed pings of `ping_period`: the connection is closed, a seen disconnect."""

    hello_timeout: timedelta = timedelta(seconds=5)
    """From the upgrade to the first frame, where the token was not in the header."""

    read_timeout: timedelta = timedelta(seconds=2)
    """For the headers of a connection's first request, and for a body: clients are small."""

    write_timeout: timedelta = timedelta(seconds=2)
    """For an answer to be taken; who reads slower is cut off."""

    idle_timeout: timedelta = timedelta(milliseconds=500)
    """A kept connection without a next request: sockets are for who stays."""

    answer_timeout: timedelta = timedelta(seconds=2)
    """Longest that a request waits for Redis before it gets a 503, all its steps together."""

    close_wait: timedelta = timedelta(seconds=2)
    """How long a close waits for the controller's word before it answers 202."""

    beat_tick: timedelta = timedelta(milliseconds=10)
    """Beats of so long go to Redis together: it costs a beat 10 ms, and a core a third less."""

    beat_batch: Annotated[int, Field(ge=1, le=200)] = 200
    """Beats per call: the most that the script takes, about 2 ms of Redis' one thread."""

    beats_waiting: Annotated[int, Field(ge=1)] = 50_000
    """Beats that may wait for Redis, one per client; more get a 503. About 20 MB."""

    verified_tokens: Annotated[int, Field(ge=1)] = 100_000
    """Digests seen verified, kept to heal a Redis that lost them; about 40 MB when full."""

    token_cache: timedelta = timedelta(seconds=30)
    """How long a good TokenReview is believed; a revoked caller lives on that long."""

    namespace_rate: Annotated[float, Field(gt=0)] = 200.0
    """Connects and new tokens a second in one namespace, over all gateways."""

    namespace_burst: Annotated[int, Field(ge=1)] = 1000
    """At once; ten thousand clients of one namespace are back within 45 s."""

    namespace_per_minute: Annotated[int, Field(ge=1)] = 9000
    """In any minute; what bursts may add up to."""

    user_rate: Annotated[float, Field(gt=0)] = 10.0
    """Connects and new tokens a second of one user, over all gateways."""

    user_burst: Annotated[int, Field(ge=1)] = 50
    """At once: a browser with many tabs, a script that starts a sweep of jobs."""

    user_per_minute: Annotated[int, Field(ge=1)] = 300
    """In any minute."""

    connections_least: Annotated[int, Field(ge=1)] = 200
    """The adaptive limit of open sockets never falls below."""

    connections_most: Annotated[int, Field(ge=1)] = 20_000
    """Nor rises above: about 15 KB each, 300 MB."""

    lag_limit: timedelta = timedelta(milliseconds=100)
    """An event loop later than this lowers the limit; a beat waits ten ticks by then."""

    latency_limit: timedelta = timedelta(milliseconds=250)
    """So does a Redis that takes longer for one call."""

    drain_spread: timedelta = timedelta(seconds=10)
    """SIGTERM: sockets are closed at random times within it, or all would come back at once."""
