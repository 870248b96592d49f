"""What Prometheus sees of the other stores. Counters of transfers are among the store's own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.kv_store.remote.exchange import Exchange


class PeerCollector(Collector):
    """Reads numbers that the store's thread writes; each is a whole one, together they may be of two moments."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def collect(self) -> Iterator[Metric]:
        """Called for each scrape, in the metrics thread."""
        up = GaugeMetricFamily("shoal_kv_store_peer_up", "1 while another store is called.", labels=["peer"])
        pulled = CounterMetricFamily(
            "shoal_kv_store_peer_blocks", "Verified blocks from another store.", labels=["peer"]
        )
        failures = CounterMetricFamily(
            "shoal_kv_store_peer_failures", "Calls of and transfers from another store that failed.", labels=["peer"]
        )
        for peer in self._exchange.peers:
            up.add_metric([peer.address], float(peer.breaker.is_closed))
            pulled.add_metric([peer.address], peer.num_pulled)
            failures.add_metric([peer.address], peer.breaker.num_failures)
        yield from (up, pulled, failures)
        waiting = len(self._exchange.outbox)
        yield GaugeMetricFamily("shoal_kv_store_offers_waiting", "Chains to be offered to their stores.", waiting)
