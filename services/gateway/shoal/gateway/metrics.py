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
REPICKED = Counter(
    "shoal_gateway_picks_not_followed_total", "Requests that another worker than the first pick served.", ["model"]
)
"""Envoy fell back or retried. Counted only when the mesh says who served."""
