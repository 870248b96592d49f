"""What Prometheus sees of a registry."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.lora_registry.settings_file import SettingsFollower
from shoal.lora_registry.store import AdapterStore

PUBLISHES = Counter("shoal_lora_registry_publishes_total", "Adapters that were published, or not.", ["result"])
FETCHED_BYTES = Counter("shoal_lora_registry_fetched_bytes_total", "Bytes of adapters that were sent.")
DAMAGED = Counter("shoal_lora_registry_damaged_total", "Versions whose bytes on disk were not those published.")
WATCHERS = Gauge("shoal_lora_registry_watchers", "Open streams of what happens.")
FETCHES = Gauge("shoal_lora_registry_fetches", "Files that are being sent.")


class RegistryCollector(Collector):
    """Reads the store, in the metrics thread."""

    def __init__(self, store: AdapterStore, follower: SettingsFollower) -> None:
        self._store = store
        self._follower = follower

    def collect(self) -> Iterator[Metric]:
        """Called for each scrape."""
        names, versions = self._store.contents()
        used_bytes = sum(record.num_bytes for record in versions)
        yield GaugeMetricFamily("shoal_lora_registry_names", "Names that point to a version.", len(names))
        yield GaugeMetricFamily("shoal_lora_registry_versions", "Versions that are kept.", len(versions))
        yield GaugeMetricFamily("shoal_lora_registry_used_bytes", "Bytes of versions.", used_bytes)
        capacity = self._store.limits.max_bytes
        yield GaugeMetricFamily("shoal_lora_registry_capacity_bytes", "Most bytes of versions.", capacity)
        problems = dict(self._follower.problems)
        help_text = "Whether an adapter of the settings is there as they say."
        adapters = GaugeMetricFamily("shoal_lora_registry_adapter_ready", help_text, labels=["adapter"])
        for wanted in self._follower.wanted:
            adapters.add_metric([wanted.name], 0 if wanted.name in problems else 1)
        yield adapters
        readable = 0 if "" in problems else 1
        yield GaugeMetricFamily("shoal_lora_registry_settings_readable", "Whether their file could be read.", readable)
