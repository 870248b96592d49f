"""Grafana's dashboards of Shoal, as data: rows of panels, each with what Prometheus is asked.

`tools/generate_chart.py` writes them to the chart, as `tools/grafana.py` renders them. Every metric named here must
exist; a test looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_RATE: Final = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph over time."""

    title: str
    queries: Sequence[tuple[str, str]]
    """(PromQL, legend). `{W}` in it is where the reader's choices go."""
    unit: str = "short"
    text: str = ""
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Choice:
    """What the dashboard's reader may look at alone."""

    name: str
    title: str
    label: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page."""

    name: str
    title: str
    rows: Sequence[Row]
    known_by: str
    """A metric that everything has that can be chosen."""
    choices: Sequence[Choice]


NAMESPACE: Final = Choice("namespace", "Namespace", "namespace")
# As the planner's ServiceMonitors name it.
SERVICE: Final = Choice("service", "InferenceService", "shoal_dev_inferenceservice")


def quantiles(metric: str, by: str = "", names: Sequence[float] = (0.5, 0.95, 0.99)) -> list[tuple[str, str]]:
    """Of a histogram, over all pods."""
    labels = f"le, {by}" if by else "le"
    suffix = f" {{{{{by}}}}}" if by else ""
    return [
        (
            f"histogram_quantile({name}, sum by ({labels}) (rate({metric}_bucket{{W}}[{_RATE}])))",
            f"p{name:.0%}"[:-1] + suffix,
        )
        for name in names
    ]


def rate(metric: str, by: str) -> tuple[str, str]:
    """Of a counter, for each value of a label."""
    return f"sum by ({by}) (rate({metric}{{W}}[{_RATE}]))", f"{{{{{by}}}}}"


def total(metric: str, legend: str) -> tuple[str, str]:
    """Of a counter, all together."""
    return f"sum(rate({metric}{{W}}[{_RATE}]))", legend


def ratio(part: str, whole: str, legend: str) -> tuple[str, str]:
    """Of two counters."""
    return f"sum(rate({part}{{W}}[{_RATE}])) / sum(rate({whole}{{W}}[{_RATE}]))", legend


def gauge(metric: str, by: str, how: str = "sum") -> tuple[str, str]:
    """A gauge, for each value of a label."""
    return f"{how} by ({by}) ({metric}{{W}})", f"{{{{{by}}}}}"


SERVING: Final = (
    Row(
        "Requests",
        (
            Panel("Requests", [rate("shoal_gateway_requests_total", "code")], "reqps", stacked=True),
            Panel("Under way", [gauge("shoal_gateway_requests_in_flight", "model")]),
            Panel(
                "Tokens",
                [
                    total("shoal_gateway_prompt_tokens_total", "prompt"),
                    total("shoal_gateway_completion_tokens_total", "generated"),
                ],
                text="A second, all models together.",
            ),
        ),
    ),
    Row(
        "What clients wait for",
        (
            Panel("Time to first token", quantiles("shoal_gateway_time_to_first_token_seconds"), "s"),
            Panel("Time between tokens", quantiles("shoal_gateway_inter_token_seconds"), "s"),
            Panel("In the queue", quantiles("shoal_gateway_queue_wait_seconds"), "s", "Those that had to wait."),
        ),
    ),
    Row(
        "Queue",
        (
            Panel("Requests that wait", [gauge("shoal_gateway_queue_requests", "tenant")], stacked=True),
            Panel("Their prompt tokens", [gauge("shoal_gateway_queue_tokens", "tenant")], stacked=True),
            Panel(
                "Left unserved or sent back",
                [
                    rate("shoal_gateway_queue_shed_total", "reason"),
                    total("shoal_gateway_queue_returns_total", "sent back"),
                ],
                "reqps",
            ),
        ),
    ),
    Row(
        "Failover",
        (
            Panel("Streams that moved", [rate("shoal_gateway_stream_moves_total", "reason")], "ops"),
            Panel("How long that took", quantiles("shoal_gateway_stream_move_seconds"), "s"),
            Panel(
                "Streams that were lost",
                [rate("shoal_gateway_stream_moves_given_up_total", "reason")],
                "ops",
            ),
        ),
    ),
)
CACHES: Final = (
    Row(
        "Prompts that need not be computed",
        (
            Panel(
                "Share of prompt tokens found in caches",
                [
                    ratio("shoal_gateway_cached_tokens_total", "shoal_gateway_prompt_tokens_total", "found"),
                    ratio(
                        "shoal_gateway_predicted_cached_tokens_total", "shoal_gateway_prompt_tokens_total", "expected"
                    ),
                ],
                "percentunit",
            ),
            Panel(
                "By tier, in blocks",
                [
                    rate("shoal_worker_kv_store_loaded_blocks_total", "tier"),
                    rate("shoal_kv_store_hits_total", "tier"),
                ],
                text="Loaded by workers, and found by KV stores.",
            ),
            Panel(
                "Share found by each worker",
                [
                    (
                        f"sum by (pod) (rate(shoal_worker_prefix_cache_hits_total{{W}}[{_RATE}]))"
                        f" / sum by (pod) (rate(shoal_worker_prefix_cache_queries_total{{W}}[{_RATE}]))",
                        "{{pod}}",
                    )
                ],
                "percentunit",
                "On the device alone.",
            ),
        ),
    ),
    Row(
        "What gateways know of caches",
        (
            Panel("Picks", [rate("shoal_gateway_picks_total", "reason")], "ops", stacked=True),
            Panel("Age of the last KV event", [gauge("shoal_gateway_kv_event_age_seconds", "worker", "max")], "s"),
            Panel(
                "Interruptions",
                [
                    rate("shoal_gateway_kv_resyncs_total", "reason"),
                    ("sum(shoal_gateway_workers_without_kv_events{W})", "workers without events"),
                ],
            ),
        ),
    ),
    Row(
        "Workers",
        (
            Panel(
                "Sequences",
                [
                    ("sum(shoal_worker_num_requests_running{W})", "running"),
                    ("sum(shoal_worker_num_requests_waiting{W})", "waiting"),
                ],
            ),
            Panel("KV cache in use", [gauge("shoal_worker_kv_cache_usage_ratio", "pod", "max")], "percentunit"),
            Panel(
                "Tokens",
                [
                    total("shoal_worker_generation_tokens_total", "generated"),
                    total("shoal_worker_computed_tokens_total", "computed"),
                    total("shoal_worker_num_preemptions_total", "preemptions"),
                ],
            ),
        ),
    ),
    Row(
        "Engine",
        (
            Panel("Step", quantiles("shoal_worker_step_seconds"), "s"),
            Panel("Tokens of a step", quantiles("shoal_worker_step_tokens")),
            Panel(
                "Failures",
                [
                    rate("shoal_worker_engine_failures_total", "reason"),
                    rate("shoal_worker_request_failure_total", "reason"),
                ],
                "ops",
            ),
        ),
    ),
)
KV_STORE: Final = (
    Row(
        "Use",
        (
            Panel(
                "Share of blocks found",
                [
                    (
                        f"sum(rate(shoal_kv_store_hits_total{{W}}[{_RATE}])) / (sum(rate(shoal_kv_store_hits_total{{W}}"
                        f"[{_RATE}])) + sum(rate(shoal_kv_store_misses_total{{W}}[{_RATE}])))",
                        "found",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Bytes moved",
                [
                    total("shoal_worker_kv_store_loaded_bytes_total", "loaded"),
                    total("shoal_worker_kv_store_stored_bytes_total", "stored"),
                ],
                "Bps",
            ),
            Panel("Of no use", [rate("shoal_worker_kv_store_unused_total", "reason")], "reqps"),
        ),
    ),
    Row(
        "Room",
        (
            Panel(
                "Used and there",
                [
                    ("sum by (tier) (shoal_kv_store_used_bytes{W})", "{{tier}}, used"),
                    ("sum by (tier) (shoal_kv_store_capacity_bytes{W})", "{{tier}}, all"),
                ],
                "bytes",
            ),
            Panel("Blocks that left", [rate("shoal_kv_store_evictions_total", "reason")], "ops"),
            Panel("Blocks not taken", [rate("shoal_kv_store_refusals_total", "reason")], "ops"),
        ),
    ),
    Row(
        "Health",
        (
            Panel("Wrong checksums", [rate("shoal_kv_store_checksum_failures_total", "place")], "ops"),
            Panel(
                "In service",
                [
                    gauge("shoal_kv_store_disk_healthy", "pod", "min"),
                    ("min(shoal_worker_kv_store_up{W})", "of use to every worker"),
                    gauge("shoal_kv_store_peer_up", "peer", "min"),
                ],
            ),
            Panel("Calls", quantiles("shoal_kv_store_call_seconds", "method", (0.99,)), "s"),
        ),
    ),
)
OPERATOR: Final = (
    Row(
        "InferenceServices",
        (
            Panel("By phase", [("max by (phase) (shoal_operator_inferenceservices{W})", "{{phase}}")], stacked=True),
            Panel("To look at", [gauge("shoal_operator_queue_services", "state")]),
            Panel("Who writes", [gauge("shoal_operator_leads", "pod", "max")]),
        ),
    ),
    Row(
        "Work",
        (
            Panel("Reconciles", [rate("shoal_operator_reconcile_seconds_count", "result")], "ops"),
            Panel("Time of one", quantiles("shoal_operator_reconcile_seconds"), "s"),
            Panel(
                "Before one", quantiles("shoal_operator_queue_seconds"), "s", "How long services that were due waited."
            ),
            Panel("Objects", [rate("shoal_operator_objects_total", "change")], "ops"),
            Panel(
                "Not ready",
                [
                    (
                        "max by (inferenceservice, phase) (shoal_operator_inferenceservice_not_ready{W})",
                        "{{inferenceservice}} {{phase}}",
                    )
                ],
                stacked=True,
            ),
            Panel(
                "Processor and memory",
                [
                    (
                        f'sum by (pod) (rate(process_cpu_seconds_total{{W,job=~".*operator.*"}}[{_RATE}]))',
                        "{{pod}} cores",
                    ),
                    (
                        'sum by (pod) (process_resident_memory_bytes{W,job=~".*operator.*"}) / 1073741824',
                        "{{pod}} GiB",
                    ),
                ],
            ),
        ),
    ),
    Row(
        "API server",
        (
            Panel("Calls", [rate("shoal_operator_api_requests_total", "code")], "reqps", "Code 0: no answer."),
            Panel("Time of one", quantiles("shoal_operator_api_request_seconds", "method", (0.99,)), "s"),
            Panel(
                "Since everything was listed",
                [("time() - max by (pod) (shoal_operator_listed_timestamp_seconds{W} > 0)", "{{pod}}")],
                "s",
            ),
        ),
    ),
    Row(
        "Webhook",
        (
            Panel("Manifests", [rate("shoal_operator_webhook_reviews_total", "result")], "reqps", stacked=True),
            Panel("Refused because of", [rate("shoal_operator_webhook_problems_total", "section")], "reqps"),
            Panel("Time of an answer", quantiles("shoal_operator_webhook_seconds"), "s"),
            Panel(
                "Served, and for how long",
                [
                    gauge("shoal_operator_webhook_up", "pod"),
                    (
                        "(min(shoal_operator_webhook_certificate_expiry_timestamp_seconds{W} > 0) - time()) / 86400",
                        "days of the certificate",
                    ),
                ],
            ),
        ),
    ),
    Row(
        "Discovery",
        (
            Panel("Updates", [rate("shoal_operator_discovery_updates_total", "kind")], "ops"),
            Panel("Refused", [rate("shoal_operator_discovery_nacks_total", "kind")], "ops"),
            Panel("Envoys and followers", [gauge("shoal_operator_discovery_clients", "pod")]),
            Panel("Refused at the moment", [gauge("shoal_operator_discovery_rejections", "pod")]),
        ),
    ),
)


MESH: Final = (NAMESPACE, SERVICE)
DASHBOARDS: Final = (
    Dashboard("serving", "Shoal: serving", SERVING, "shoal_gateway_requests_total", MESH),
    Dashboard("caches", "Shoal: caches and workers", CACHES, "shoal_worker_kv_cache_blocks", MESH),
    Dashboard("kv-store", "Shoal: KV store", KV_STORE, "shoal_kv_store_blocks", MESH),
    Dashboard("operator", "Shoal: operator", OPERATOR, "shoal_operator_leads", (NAMESPACE,)),
)
