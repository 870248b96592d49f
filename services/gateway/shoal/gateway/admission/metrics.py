"""Prometheus metrics of admission. A tenant is named where the configuration names it; the others share "other"."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)

QUEUE_REQUESTS = Gauge(
    "shoal_gateway_queue_requests", "Requests that wait for room at the workers.", ["model", "tenant", "band"]
)
QUEUE_TOKENS = Gauge("shoal_gateway_queue_tokens", "Their prompt tokens.", ["model", "tenant", "band"])
QUEUE_WAIT_S = Histogram(
    "shoal_gateway_queue_wait_seconds",
    "How long requests waited until they went to a worker; those that did not have to are not in it.",
    ["model", "band"],
    buckets=_SECONDS,
)
SHED = Counter("shoal_gateway_queue_shed_total", "Requests that left the queue unserved, by why.", ["model", "reason"])
REFUSED = Counter(
    "shoal_gateway_queue_returns_total", "Requests that went back to the queue because no worker had room.", ["model"]
)
SHARE = Gauge(
    "shoal_gateway_admission_share_sequences", "Sequences that this gateway may have under way at once.", ["model"]
)


def band_of(priority: int) -> str:
    """Priorities are numbers from -100 to 100; as a label they are three."""
    return "high" if priority < 0 else "low" if priority > 0 else "default"
