"""What Prometheus is told: where metrics are, and when the service's aims are missed."""

from __future__ import annotations

from typing import Any, Final

from shoal.operator.api import InferenceService
from shoal.operator.planner.kubernetes.names import COMPONENT_LABEL, OWNER_LABEL, manifest
from shoal.operator.planner.kubernetes.platform import Manifest, Owner, Platform
from shoal.operator.planner.kubernetes.scaling import SERVICE_LABEL

COMPONENT: Final = "metrics"
MONITORING_API: Final = "monitoring.coreos.com/v1"
METRICS_PORTS: Final = ("metrics", "kv-metrics")
"""Of the service's Services."""
_INTERVAL: Final = "15s"
_AIMS: Final = {
    "ttft": ("FirstTokens", "shoal_gateway_time_to_first_token_seconds", "first tokens come later"),
    "itl": ("InterToken", "shoal_gateway_inter_token_seconds", "tokens come further apart"),
}


def monitors(service: InferenceService, platform: Platform, owner: Owner) -> list[Manifest]:
    """A ServiceMonitor, and a PrometheusRule if there are aims; nothing where Prometheus' operator is not."""
    if MONITORING_API not in platform.apis:
        return []
    objects = []
    if service.spec.observability.service_monitor:
        objects.append(manifest(service, owner, MONITORING_API, "ServiceMonitor", COMPONENT, spec=_monitor(service)))
    rules = _rules(service, owner)
    if rules:
        groups = [{"name": f"shoal.{service.metadata.name}", "rules": rules}]
        objects.append(manifest(service, owner, MONITORING_API, "PrometheusRule", COMPONENT, spec={"groups": groups}))
    return objects


def _monitor(service: InferenceService) -> dict[str, Any]:
    return {
        "selector": {"matchLabels": {OWNER_LABEL: service.metadata.name}},
        "targetLabels": [OWNER_LABEL, COMPONENT_LABEL],
        "endpoints": [{"port": port, "interval": _INTERVAL, "path": "/metrics"} for port in METRICS_PORTS],
    }


def _rules(service: InferenceService, owner: Owner) -> list[dict[str, Any]]:
    slo = service.spec.slo
    if slo is None:
        return []
    name, rules = service.metadata.name, []
    for short, aim_ms in (("ttft", slo.ttft_milliseconds), ("itl", slo.itl_milliseconds)):
        if aim_ms is None:
            continue
        alert, histogram, what = _AIMS[short]
        chosen = f'namespace="{owner.namespace}",{SERVICE_LABEL}="{name}"'
        rate = f"sum by (le) (rate({histogram}_bucket{{{chosen}}}[5m]))"
        rules.append(
            {
                "alert": f"Shoal{alert}MissTheirAim",
                "expr": f"histogram_quantile(0.95, {rate}) > {aim_ms / 1000:g}",
                "for": "10m",
                "labels": {"severity": "warning", "inferenceservice": name},
                "annotations": {
                    "summary": f"In one of twenty cases {what} than spec.slo allows ({aim_ms} ms)",
                    "description": f"`shoal status {name} -n {owner.namespace}` shows whether workers are missing.",
                },
            }
        )
    return rules
