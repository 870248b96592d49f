"""What is counted where it happens, for Prometheus; `reconcile/metrics.py` has what is read at each scrape.

Labels have few values: nothing that a manifest says becomes one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import Counter, Gauge, Histogram

_BUCKETS_S = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
RECONCILE_SECONDS = Histogram(
    "shoal_operator_reconcile_seconds", "Time of one reconcile.", ["result"], buckets=_BUCKETS_S
)
QUEUE_SECONDS = Histogram(
    "shoal_operator_queue_seconds", "How long InferenceServices that were due waited.", buckets=_BUCKETS_S
)
OBJECTS = Counter(
    "shoal_operator_objects", "Objects of InferenceServices that were written, by what was done.", ["change"]
)
API_REQUESTS = Counter("shoal_operator_api_requests", "Calls of the API server; code 0: no answer.", ["method", "code"])
API_SECONDS = Histogram("shoal_operator_api_request_seconds", "Time of those.", ["method"], buckets=_BUCKETS_S)
DISCOVERY_UPDATES = Counter("shoal_operator_discovery_updates", "Updates sent to Envoys and followers.", ["kind"])
DISCOVERY_NACKS = Counter("shoal_operator_discovery_nacks", "Those that one of them refused.", ["kind"])
WEBHOOK_REVIEWS = Counter(
    "shoal_operator_webhook_reviews",
    "Manifests that the API server asked about: allowed, warned (allowed, with something to say), refused, bad "
    "(no question) or failed.",
    ["result"],
)
WEBHOOK_PROBLEMS = Counter("shoal_operator_webhook_problems", "Reasons to refuse, by section of the spec.", ["section"])
WEBHOOK_SECONDS = Histogram("shoal_operator_webhook_seconds", "Time of an answer.", buckets=_BUCKETS_S)
WEBHOOK_UP = Gauge("shoal_operator_webhook_up", "1 while the webhook is served.")
CERTIFICATE_EXPIRY = Gauge(
    "shoal_operator_webhook_certificate_expiry_timestamp_seconds", "When the certificate that it serves with ends."
)


@contextlib.contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observes how long the block takes, whatever comes of it."""
    started_s = time.monotonic()
    try:
        yield
    finally:
        histogram.observe(time.monotonic() - started_s)
