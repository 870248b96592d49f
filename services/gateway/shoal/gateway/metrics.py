"""The gateway's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)

REQUESTS = Counter("shoal_gateway_requests_total", "Finished generation requests.", ["model", "code"])
IN_FLIGHT = Gauge("shoal_gateway_requests_in_flight", "Generation requests under way.", ["model"])
FIRST_TOKEN_S = Histogram(
    "shoal_gateway_time_to_first_token_seconds", "From arrival to the first message.", ["model"], buckets=_SECONDS
)
GAP_S = Histogram(
    "shoal_gateway_inter_token_seconds", "Between messages of one request.", ["model"], buckets=_GAP_SECONDS
)
PROMPT_TOKENS = Counter("shoal_gateway_prompt_tokens_total", "Prompt tokens sent to workers.", ["model"])
COMPLETION_TOKENS = Counter("shoal_gateway_completion_tokens_total", "Tokens generated.", ["model"])
PICKS = Counter("shoal_gateway_picks_total", "Routing decisions by reason.", ["reason"])
PREDICTED_CACHED_TOKENS = Counter(
    "shoal_gateway_predicted_cached_tokens_total", "Prompt tokens the router expected to be cached.", ["model"]
)
CACHED_TOKENS = Counter(
    "shoal_gateway_cached_tokens_total", "Prompt tokens that workers reported as cached.", ["model"]
)
MOVES = Counter(
    "shoal_gateway_stream_moves_total",
    "Streams that went on at another worker (or again at the same), by why they were lost at the one before.",
    ["model", "reason"],
)
MOVE_S = Histogram(
    "shoal_gateway_stream_move_seconds",
    "From the loss of an attempt to the first message of the one that goes on.",
    ["model"],
    buckets=_SECONDS,
)
MOVES_GIVEN_UP = Counter(
    "shoal_gateway_stream_moves_given_up_total", "Streams that were not moved (again), by reason.", ["model", "reason"]
)
RESUMED = Counter(
    "shoal_gateway_requests_resumed_total", "Requests of clients that had a part of the answer already.", ["model"]
)
REPICKED = Counter(
    "shoal_gateway_picks_not_followed_total", "Requests that another worker than the first pick served.", ["model"]
)
"""Envoy fell back or retried. Counted only when the mesh says who served."""
KV_EVENT_AGE_S = Gauge(
    "shoal_gateway_kv_event_age_seconds",
    "Since the last message of a worker's KV events. More than a few seconds: it is silent, if it sends heartbeats.",
    ["worker"],
)
KV_RESYNCS = Counter(
    "shoal_gateway_kv_resyncs_total",
    "Interruptions of what is known about a worker's cache: snapshot taken in, gap in its events, restart (another "
    "epoch), lost (the stream ended), silent (it stayed open and said nothing).",
    ["worker", "reason"],
)
KV_STALE_WORKERS = Gauge(
    "shoal_gateway_workers_without_kv_events",
    "Workers whose events stopped: they are picked as if their caches were empty.",
)
WORKER_PREDICTED_CACHED_TOKENS = Counter(
    "shoal_gateway_worker_predicted_cached_tokens_total",
    "Tokens that were predicted to be cached at the worker that then answered.",
    ["worker"],
)
WORKER_CACHED_TOKENS = Counter(
    "shoal_gateway_worker_cached_tokens_total",
    "Tokens that the worker reported as cached for the same requests.",
    ["worker"],
)
HIT_DRIFT_TOKENS = Histogram(
    "shoal_gateway_worker_hit_drift_tokens",
    "Predicted minus actual cached tokens of a request. Above 0: the index believes in blocks that are not there.",
    ["worker"],
    buckets=(-4096, -512, -64, -1, 0, 64, 512, 4096, 32768),
)
PEERS = Gauge("shoal_gateway_peers", "Other gateways whose loads are followed right now.")
PEER_MESSAGES = Counter("shoal_gateway_peer_messages_total", "Messages about loads between gateways.", ["direction"])
PEER_LOST = Counter(
    "shoal_gateway_peer_lost_total", "Ends of a followed gateway's stream: its share was dropped.", ["reason"]
)
PEER_EXPECTATIONS_DROPPED = Counter(
    "shoal_gateway_peer_expectations_dropped_total", "Picks that other gateways were not told of: too many at once."
)
