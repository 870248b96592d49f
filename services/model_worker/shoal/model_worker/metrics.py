"""The worker's Prometheus metrics: vLLM's names under the prefix `shoal_worker_`."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.model_worker.engine_failure import EngineFailureReason
from shoal.model_worker.kv_store_status import KvStoreStatus
from shoal.model_worker.messages import StepFrame
from shoal.model_worker.request import FinishReason
from shoal.model_worker.scheduler import SchedulerStats
from shoal.model_worker.streams import ChoiceOutput

_STEP_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0)
_TTFT_BUCKETS_S: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_ITL_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)
_TOKEN_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_OVERLOAD: Final = frozenset({"RESOURCE_EXHAUSTED", "UNAVAILABLE", "DRAINING", "WORKER_FAILED", "INTERNAL"})


class Buckets:
    """A histogram that costs a bisection per value (0.2 us): the front observes every token of every stream."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        """The histogram as Prometheus wants it: cumulative."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == math.inf else str(bound), total))
        return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=self._sum)


class WorkerMetrics(Collector):
    """Written by the front's event loop, read by the scraper's thread; a scrape may be a step behind, never torn
    within one number. Register it once: `prometheus_client.REGISTRY.register(metrics)`.
    """

    def __init__(self) -> None:
        self.stats = SchedulerStats()
        self.kv_store = KvStoreStatus()
        self.num_overload_errors = 0
        """Requests that failed because of this worker, not because of what they asked."""
        self._finished: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._engine_failed: Counter[str] = Counter()
        self._ttft = Buckets(_TTFT_BUCKETS_S)
        self._itl = Buckets(_ITL_BUCKETS_S)
        self._step = Buckets(_STEP_BUCKETS_S)
        self._step_tokens = Buckets(_TOKEN_BUCKETS)

    def token(self, output: ChoiceOutput, now_s: float) -> None:
        """A completion got a token from the engine; called before the output is brought up to date."""
        if output.last_token_s:
            self._itl.observe(now_s - output.last_token_s)
        else:
            self._ttft.observe(now_s - output.stream.request.arrival_s)

    def finished(self, reason: FinishReason) -> None:
        """A completion ended by itself."""
        self._finished[reason.name.lower()] += 1

    def failed(self, reason: str) -> None:
        """A request ended with an error."""
        self._failed[reason.lower()] += 1
        self.num_overload_errors += reason in _OVERLOAD

    def engine_failed(self, reason: EngineFailureReason) -> None:
        """The engine ended by itself. The worker ends with it, so this is for whoever scrapes in between."""
        self._engine_failed[reason] += 1

    def step(self, frame: StepFrame) -> None:
        """The engine took a turn."""
        self.stats = frame.stats
        if frame.kv_store is not None:
            self.kv_store.update(frame.kv_store)
        if frame.num_step_tokens:
            self._step.observe(frame.step_s)
            self._step_tokens.observe(frame.num_step_tokens)

    @property
    def kv_usage(self) -> float:
        """Fraction of the KV blocks that sequences hold, in [0, 1]."""
        return self.stats.num_used_blocks / self.stats.num_blocks if self.stats.num_blocks else 0.0

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client for each scrape."""
        stats, prefix = self.stats, "shoal_worker_"
        for name, text, value in (
            ("num_requests_running", "Sequences in the running batch.", stats.num_running),
            ("num_requests_waiting", "Sequences in the queue.", stats.num_waiting),
            ("num_waiting_tokens", "Tokens that the queue has to compute.", stats.num_waiting_tokens),
            ("kv_cache_usage_ratio", "Fraction of KV blocks held by sequences.", self.kv_usage),
            ("kv_cache_blocks", "KV blocks on the device.", stats.num_blocks),
            ("kv_cache_used_blocks", "KV blocks held by sequences.", stats.num_used_blocks),
        ):
            yield GaugeMetricFamily(prefix + name, text, value)
        for name, text, value in (
            ("num_preemptions", "Sequences sent back to the queue.", stats.num_preemptions),
            ("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_query_tokens),
            ("prefix_cache_hits", "Prompt tokens found.", stats.prefix_hit_tokens),
            ("generation_tokens", "Tokens generated.", stats.generated_tokens),
            ("computed_tokens", "Tokens run through the model.", stats.computed_tokens),
        ):
            yield CounterMetricFamily(prefix + name, text, value)
        finished = CounterMetricFamily(
            prefix + "request_success", "Completions that ended.", labels=["finished_reason"]
        )
        for reason in FinishReason:
            finished.add_metric([reason.name.lower()], self._finished[reason.name.lower()])
        yield finished
        failed = CounterMetricFamily(
            prefix + "request_failure", "Requests that ended with an error.", labels=["reason"]
        )
        for failure, count in list(self._failed.items()):
            failed.add_metric([failure], count)
        yield failed
        engine_failed = CounterMetricFamily(prefix + "engine_failures", "Engines that ended.", labels=["reason"])
        for engine_failure in get_args(EngineFailureReason):
            engine_failed.add_metric([engine_failure], self._engine_failed[engine_failure])
        yield engine_failed
        yield from self.kv_store.collect(prefix)
        yield self._ttft.family(prefix + "time_to_first_token_seconds", "From a request's arrival to its first token.")
        yield self._itl.family(prefix + "inter_token_latency_seconds", "Between tokens of one completion.")
        yield self._step.family(prefix + "step_seconds", "Time of one engine step in the runner.")
        yield self._step_tokens.family(prefix + "step_tokens", "Tokens computed in one engine step.")


class LoadMeter:
    """Rates between two readings of the counters, for one reader."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._read_s = time.monotonic()
        self._tokens, self._errors = metrics.stats.generated_tokens, metrics.num_overload_errors

    def read(self) -> tuple[float, float]:
        """(generated tokens, failed requests) a second since the last reading."""
        now_s, metrics = time.monotonic(), self._metrics
        elapsed_s = max(now_s - self._read_s, 1e-3)
        tokens, errors = metrics.stats.generated_tokens, metrics.num_overload_errors
        rates = (tokens - self._tokens) / elapsed_s, (errors - self._errors) / elapsed_s
        self._read_s, self._tokens, self._errors = now_s, tokens, errors
        return rates
