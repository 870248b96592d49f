"""What Prometheus sees of a store."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.kv_store.store import Store


class StoreCollector(Collector):
    """Reads numbers that the store's thread writes; each is a whole one, together they may be of two moments."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Called for each scrape, in the metrics thread."""
        store = self._store
        events = CounterMetricFamily(
            "shoal_kv_store_events", "Blocks, leases and sessions by what happened to them.", labels=["event"]
        )
        for name, num in store.counters.items():
            events.add_metric([name], num)
        yield events
        yield GaugeMetricFamily("shoal_kv_store_blocks", "Visible blocks.", len(store.index))
        yield GaugeMetricFamily("shoal_kv_store_memory_bytes", "Memory for blocks.", store.arena.capacity_bytes)
        used = store.arena.num_used_bytes
        yield GaugeMetricFamily("shoal_kv_store_used_memory_bytes", "Memory of blocks that are there.", used)
        yield GaugeMetricFamily("shoal_kv_store_sessions", "Open sessions.", len(store.sessions))
