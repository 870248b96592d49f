"""What Prometheus sees of the operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, get_args

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.operator.api.status import Phase

if TYPE_CHECKING:
    from shoal.operator.reconcile.controller import Controller

_AT_REST: Final = ("Ready", "Paused")
_UNKNOWN: Final = "Unknown"
"""Nobody has looked at it yet, or it was another version of the operator."""


class OperatorCollector(Collector):
    """Reads what the event loop writes; each number is a whole one, together they may be of two moments.

    Register it once: `prometheus_client.REGISTRY.register(collector)`.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def _not_ready(self) -> Metric:
        """Which they are; those that are ready would be a series each, for nothing."""
        family = GaugeMetricFamily(
            "shoal_operator_inferenceservice_not_ready",
            "1 for each InferenceService in another phase than Ready or Paused.",
            labels=["inferenceservice", "phase"],
        )
        for key, found in list(self._controller.reconciler.services.items()):
            phase = (found.get("status") or {}).get("phase") or _UNKNOWN
            if phase not in _AT_REST:
                family.add_metric(["/".join(key), phase if phase in get_args(Phase) else _UNKNOWN], 1)
        return family

    def collect(self) -> Iterator[Metric]:
        """Called for each scrape, in the metrics thread."""
        controller = self._controller
        services = GaugeMetricFamily(
            "shoal_operator_inferenceservices", "InferenceServices by phase.", labels=["phase"]
        )
        phases = Counter(
            (found.get("status") or {}).get("phase") for found in list(controller.reconciler.services.values())
        )
        for phase in get_args(Phase):
            services.add_metric([phase], phases.pop(phase, 0))
        services.add_metric([_UNKNOWN], phases.total())
        yield services
        yield self._not_ready()
        writes = "1 while this operator is the one that writes."
        yield GaugeMetricFamily("shoal_operator_leads", writes, int(controller.reconciler.writes))
        queue = controller.queue
        keys = GaugeMetricFamily(
            "shoal_operator_queue_services", "InferenceServices to look at, by state.", labels=["state"]
        )
        for state, num in queue.sizes.items():
            keys.add_metric([state], num)
        yield keys
        listed = "When everything was last listed: what is older than the look-round, it does not know of."
        yield GaugeMetricFamily("shoal_operator_listed_timestamp_seconds", listed, controller.listed_unix_s)
        connected = "Envoys and followers that are told of endpoints by this operator."
        yield GaugeMetricFamily("shoal_operator_discovery_clients", connected, controller.snapshots.num_nodes)
        refused = "Updates that one of them refuses at the moment, and goes on with what it had."
        yield GaugeMetricFamily("shoal_operator_discovery_rejections", refused, controller.snapshots.num_rejections)
