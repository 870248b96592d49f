from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from shoal.model_worker.metrics import Buckets, WorkerMetrics
from shoal.model_worker.request import FinishReason
from shoal.model_worker.scheduler import SchedulerStats


def test_buckets_are_cumulative_and_bounds_belong_to_their_bucket() -> None:
    buckets = Buckets((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 9):
        buckets.observe(value)
    samples = {s.labels.get("le", s.name): s.value for s in buckets.family("x", "").samples}
    assert samples == {"1": 2, "2": 3, "4": 4, "+Inf": 5, "x_count": 5, "x_sum": 16}


def test_gauges_and_counters_come_from_the_latest_stats() -> None:
    metrics, registry = WorkerMetrics(), CollectorRegistry()
    registry.register(metrics)
    metrics.stats = SchedulerStats(num_running=3, num_blocks=8, num_used_blocks=2, prefix_hit_tokens=5)
    metrics.finished(FinishReason.STOP)
    metrics.failed("DEADLINE_EXCEEDED")
    assert registry.get_sample_value("shoal_worker_num_requests_running") == 3
    assert registry.get_sample_value("shoal_worker_kv_cache_usage_ratio") == pytest.approx(0.25)
    assert registry.get_sample_value("shoal_worker_prefix_cache_hits_total") == 5
    assert registry.get_sample_value("shoal_worker_request_success_total", {"finished_reason": "stop"}) == 1
    assert registry.get_sample_value("shoal_worker_request_success_total", {"finished_reason": "length"}) == 0
    assert registry.get_sample_value("shoal_worker_request_failure_total", {"reason": "deadline_exceeded"}) == 1
    assert metrics.num_overload_errors == 0
    metrics.engine_failed("stalled")
    assert registry.get_sample_value("shoal_worker_engine_failures_total", {"reason": "stalled"}) == 1
    assert registry.get_sample_value("shoal_worker_engine_failures_total", {"reason": "device"}) == 0


def test_usage_is_zero_before_the_engine_has_blocks() -> None:
    assert WorkerMetrics().kv_usage == 0
