"""What the front knows of the use of the KV store: metrics, and whether it is of any use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from shoal.model_worker.kv_offload.stats import KvStoreStats

HEALTH_NAME: Final = "shoal.model_worker.kv_store"
"""The health service that is NOT_SERVING while the store is of no use to the worker, which goes on without."""
_log = structlog.get_logger("shoal.model_worker")


class KvStoreStatus:
    """Written by the front's event loop, read by the scraper's thread too."""

    def __init__(self) -> None:
        self.is_configured = False
        self.stats = KvStoreStats()
        self._changed = asyncio.Event()
        self._changed.set()

    @property
    def problem(self) -> str:
        """Why the store is of no use right now; empty while it is, or when there is none."""
        return self.stats.problem

    def update(self, stats: KvStoreStats) -> None:
        """The engine's counters."""
        before, self.stats = self.stats.problem, stats
        if bool(before) != bool(stats.problem):
            self._changed.set()
            if stats.problem:
                _log.warning("the KV store is of no use; prompts are computed", problem=stats.problem)
            else:
                _log.info("the KV store is of use again")

    async def tell(self, set_part: Callable[[str, bool], Awaitable[None]]) -> None:
        """Keeps the health service HEALTH_NAME true to this, for as long as it runs."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await set_part(HEALTH_NAME, not self.problem)

    def collect(self, prefix: str) -> Iterator[Metric]:
        """The metrics; none without a store."""
        if not self.is_configured:
            return
        stats, prefix = self.stats, f"{prefix}kv_store_"
        yield GaugeMetricFamily(prefix + "up", "Whether the KV store is of use.", int(not stats.problem))
        yield GaugeMetricFamily(prefix + "queued_blocks", "Blocks that wait to be stored.", stats.num_queued_blocks)
        for name, text, value in (
            ("lookups", "Questions answered.", stats.num_lookups),
            ("lookup_seconds", "Time from questions to answers.", stats.lookup_s),
            ("loads", "Requests whose blocks were loaded, at least some of them.", stats.num_loads),
            ("load_seconds", "Time that they waited for them.", stats.load_s),
            ("loaded_bytes", "Bytes loaded.", stats.loaded_bytes),
            ("stored_blocks", "Blocks stored.", stats.stored_blocks),
            ("stored_bytes", "Bytes stored.", stats.stored_bytes),
            ("store_seconds", "Time spent on storing, beside the engine.", stats.store_s),
        ):
            yield CounterMetricFamily(prefix + name, text, value)
        for name, label, text, counts in (
            ("loaded_blocks", "tier", "Blocks loaded in place of computing them.", stats.loaded_blocks),
            ("unused", "reason", "Requests that computed what the store had or might have had.", stats.unused),
            ("failed_blocks", "reason", "Blocks that were not what they should have been.", stats.failed_blocks),
            ("dropped_blocks", "reason", "Blocks that were not stored.", stats.dropped_blocks),
            ("errors", "call", "Uses of the store that failed here, and not because it was away.", stats.errors),
        ):
            family = CounterMetricFamily(prefix + name, text, labels=[label])
            for value_of_label, count in counts.items():
                family.add_metric([value_of_label], count)
            yield family
