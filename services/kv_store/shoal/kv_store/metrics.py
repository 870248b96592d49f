"""What Prometheus sees of a store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.kv_store.latency import BOUNDS_S, Durations
from shoal.kv_store.reporting import make_counters
from shoal.kv_store.store import Store

_FAMILIES: Final[tuple[tuple[str, str, str, Mapping[str, str]], ...]] = (
    ("hits", "Blocks that were asked for and found, by where.", "tier", {"hits_memory": "memory", "hits_disk": "disk"}),
    (
        "evictions",
        "Blocks that left the store, or memory for room, by why.",
        "reason",
        {
            "evicted": "room",
            "removed_asked": "asked",
            "removed_wrong": "wrong",
            "removed_expired": "expired",
            "removed_lost": "lost",
            "disk_dropped": "disk_room",
        },
    ),
    (
        "checksum_failures",
        "Blocks whose bytes were not those that were stored, by where that was found.",
        "place",
        {
            "checksum_failures_commit": "commit",
            "checksum_failures_memory": "memory",
            "checksum_failures_disk": "disk",
            "checksum_failures_peer": "peer",
        },
    ),
)
"""Name, help, label, and the label's value for each of the store's counters that it takes."""

PAGE_BYTES: Final = {"off": 4096, "transparent": 2 << 20, "reserved": 2 << 20}


class StoreCollector(Collector):
    """Reads numbers that the store's thread writes; each is a whole one, together they may be of two moments."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Called for each scrape, in the metrics thread."""
        counters = make_counters(self._store)
        for name, text, label, values in _FAMILIES:
            family = CounterMetricFamily(f"shoal_kv_store_{name}", text, labels=[label])
            for counter, value in values.items():
                family.add_metric([value], counters.pop(counter, 0))
            yield family
        yield CounterMetricFamily("shoal_kv_store_misses", "Blocks asked for and not found.", counters.pop("misses"))
        refusals = CounterMetricFamily("shoal_kv_store_refusals", "Blocks not taken, by why.", labels=["reason"])
        events = CounterMetricFamily("shoal_kv_store_events", "What else happened, by what.", labels=["event"])
        for name, num in counters.items():
            kind, _, reason = name.partition("refused_")
            if reason:
                refusals.add_metric([kind + reason], num)
            else:
                events.add_metric([name], num)
        yield from (refusals, events)
        yield from self._sizes()
        yield self._latency()

    def _sizes(self) -> Iterator[Metric]:
        store, disk = self._store, self._store.disk
        sizes = list(store.index.sizes.values())
        yield GaugeMetricFamily("shoal_kv_store_blocks", "Visible blocks.", len(store.index))
        used = GaugeMetricFamily("shoal_kv_store_used_bytes", "Bytes of blocks that are there.", labels=["tier"])
        capacity = GaugeMetricFamily("shoal_kv_store_capacity_bytes", "Bytes for blocks.", labels=["tier"])
        tiers = GaugeMetricFamily("shoal_kv_store_tier_blocks", "Visible blocks by where they are.", labels=["tier"])
        tiers.add_metric(["memory"], sum(each.num_in_memory for each in sizes))
        used.add_metric(["memory"], store.arena.num_used_bytes)
        capacity.add_metric(["memory"], store.arena.capacity_bytes)
        if disk is not None:
            tiers.add_metric(["disk"], sum(each.num_on_disk for each in sizes))
            used.add_metric(["disk"], disk.used_bytes)
            capacity.add_metric(["disk"], disk.capacity_bytes)
            healthy = "Whether the disk tier is in service."
            yield GaugeMetricFamily("shoal_kv_store_disk_healthy", healthy, 0 if disk.problem else 1)
            owed = "Chains, from some block on, that the disk did not take and is offered again."
            yield GaugeMetricFamily("shoal_kv_store_disk_owed", owed, disk.demoting.num_owed)
            admitted = "Share of the chains that the disk lets in."
            yield GaugeMetricFamily("shoal_kv_store_disk_admitted_ratio", admitted, disk.stats().admitted_fraction)
        yield from (tiers, used, capacity)
        yield GaugeMetricFamily("shoal_kv_store_pinned_bytes", "Of blocks that owners pinned.", store.pins.bytes_of(""))
        pages = "Bytes of a page that memory for blocks has, as far as the kernel grants it."
        yield GaugeMetricFamily("shoal_kv_store_page_bytes", pages, PAGE_BYTES[store.huge_pages.granted])
        yield GaugeMetricFamily("shoal_kv_store_problems", "What does not work at the moment.", len(store.problems))
        yield GaugeMetricFamily("shoal_kv_store_sessions", "Open sessions of clients.", store.num_clients)
        yield GaugeMetricFamily("shoal_kv_store_draining", "Whether it takes no more blocks.", int(store.draining))

    def _latency(self) -> Metric:
        text = "Time that calls over the Unix socket took in the store."
        family = HistogramMetricFamily("shoal_kv_store_call_seconds", text, labels=["method"])
        for method, durations in list(self._store.latency.items()):
            family.add_metric([method], _buckets(durations), durations.sum_s)
        return family


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    bounds = [*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"]
    return list(zip(bounds, itertools.accumulate(durations.counts), strict=True))
