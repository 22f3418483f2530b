"""Every metric of every process; labels only ever take values of an enum or a fixed set.

A process serves all of them and moves its own. Names end in their unit, counters in _total.
"""

from prometheus_client import Counter, Gauge, Histogram

# ---- every process that talks to Kubernetes ----

API_REQUESTS = Counter(
    "gpusession_api_requests_total",
    "Requests to kube-apiserver by method and class of answer (2xx, 4xx, 5xx, none).",
    ["method", "code"],
)

# ---- agent ----

RELEASE_VERDICTS = Counter(
    "gpusession_release_verdicts_total",
    "Answers to releases by verdict, repeats included.",
    ["verdict"],
)

RELEASES_REOPENED = Counter(
    "gpusession_releases_reopened_total",
    "Released Pods in which something lived again, and was ended again.",
)

RELEASE_STAGE_SECONDS = Histogram(
    "gpusession_release_stage_seconds",
    "How long each stage of a release took; 0.2 is its limit, 0.8 that of all stages.",
    ["stage"],
    buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.4, 0.8, 1.6, 10.0, 60.0),
)

BINDS = Counter(
    "gpusession_binds_total", "Answers to binds by reason; Bound is a success.", ["reason"]
)

NVML_BLIND = Counter(
    "gpusession_nvml_blind_total", "Looks at NVML that could not see, by reason.", ["reason"]
)

POD_RESOURCES = Counter(
    "gpusession_pod_resources_total",
    "Questions to kubelet for a Pod's GPUs by result: get (it has some), none, unseen.",
    ["result"],
)

AGENT_REQUESTS = Counter(
    "gpusession_agent_requests_total",
    "Requests to the agent's API by route and HTTP status.",
    ["route", "code"],
)

LEDGER_ROWS = Gauge("gpusession_ledger_rows", "Sessions in the agent's ledger by state.", ["state"])

SESSION_USAGE = Gauge(
    "gpusession_sessions_gpu_work",
    "Bound Sessions by what the last answer said of their GPU work (Busy, NotBusy, Unknown).",
    ["busy"],
)

# ---- controller ----

SESSIONS = Gauge("gpusession_sessions", "Sessions by phase, as of the last sweep.", ["phase"])

TRANSITIONS = Counter(
    "gpusession_transitions_total",
    "Phase changes written, with the reason of the new phase.",
    ["from", "to", "reason"],
)

SESSIONS_ENDED = Counter(
    "gpusession_sessions_ended_total", "Sessions written as Destroyed, by verdict.", ["verdict"]
)

RECONCILES = Counter(
    "gpusession_reconciles_total", "Visits to a Session by how they ended.", ["result"]
)

RECONCILE_SECONDS = Histogram(
    "gpusession_reconcile_seconds",
    "How long one visit to a Session took, calls to the agent included.",
    buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0, 15.0),
)

QUEUE_DEPTH = Gauge("gpusession_destroy_queue_depth", "Keys ready and not yet taken.")

WATCH_EVENTS = Counter("gpusession_watch_events_total", "Session events that the watch brought.")

WATCH_BEHIND = Gauge(
    "gpusession_watch_behind_seconds", "For how long a list has shown what the watch has not."
)

AGENT_CALLS = Counter(
    "gpusession_agent_calls_total",
    "Calls to node agents by route and class of answer (2xx, 4xx, 5xx, none, absent).",
    ["route", "code"],
)

REPAIRS = Counter("gpusession_repairs_total", "Disagreements found and mended, by kind.", ["kind"])

REDIS_UP = Gauge("gpusession_redis_up", "1 while the records' Redis answers.")

LEADER = Gauge("gpusession_leader", "1 while this process holds the Lease.")

EXPIRY_BRAKE = Gauge(
    "gpusession_expiry_brake_level",
    "Tightest brake on expiry per kind of scope: 0 normal, 1 partial, 2 full.",
    ["scope"],
)

EXPIRY_SILENT = Gauge("gpusession_expiry_silent_sessions", "Sessions found late or overdue.")

EXPIRY_HELD = Gauge("gpusession_expiry_held_sessions", "Overdue Sessions that wait for a turn.")

EXPIRY_GRANTS = Counter("gpusession_expiry_grants_total", "Overdue Sessions that had their turn.")

EXPIRY_CLAIMS = Counter(
    "gpusession_expiry_claims_total", "Claims of silent Sessions by outcome.", ["outcome"]
)

EXPIRY_WOULD_END = Counter(
    "gpusession_expiry_would_end_total",
    "Ends that observe mode only told of, by reason; once per silence.",
    ["reason"],
)

WATCH_BREAKS = Counter(
    "gpusession_redis_watch_breaks_total",
    "Times that the watch of Redis began anew, by reason; everybody then has a whole threshold.",
    ["reason"],
)

SWEEP_SECONDS = Histogram(
    "gpusession_sweep_seconds",
    "How long one sweep of the deadlines took.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0),
)

GATEWAYS_LAPSED = Counter(
    "gpusession_gateways_lapsed_total", "Gateways that stopped renewing their lease."
)

# ---- gateway ----

GATEWAY_CONNECTIONS = Gauge("gpusession_gateway_connections", "Open WebSockets of clients.")

GATEWAY_HEARTBEATS = Counter(
    "gpusession_gateway_heartbeats_total",
    "Beats by what became of them: an answer of Redis, or unavailable.",
    ["result"],
)

GATEWAY_FRAMES = Counter(
    "gpusession_gateway_frames_total",
    "Messages from clients by type (a frame's, ping, pong, other).",
    ["type"],
)

GATEWAY_CLOSES = Counter(
    "gpusession_gateway_closes_total",
    "Ended WebSockets by the code that we closed with; client where the other side ended it.",
    ["code"],
)

GATEWAY_REFUSALS = Counter(
    "gpusession_gateway_refusals_total", "Requests and frames refused, by reason.", ["reason"]
)

GATEWAY_FLUSH_SECONDS = Histogram(
    "gpusession_gateway_flush_seconds",
    "How long Redis took for one call with gathered beats.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0),
)

GATEWAY_CONNECTION_LIMIT = Gauge(
    "gpusession_gateway_connection_limit", "So many WebSockets may be open, for now."
)

GATEWAY_LOOP_LAG = Gauge(
    "gpusession_gateway_loop_lag_seconds", "How late the event loop was at most in a second."
)
