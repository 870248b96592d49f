"""Autoscaling: an object that sets the InferenceService's own number of workers, by its scale subresource.

The operator then plans with that number, as if a person had given it: nobody else writes to workloads, and one number
scales several roles by their ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from shoal.operator.api import InferenceService
from shoal.operator.api.spec import API_VERSION, KIND, Autoscaling, InferenceServiceSpec
from shoal.operator.planner.kubernetes.names import OWNER_LABEL, manifest
from shoal.operator.planner.kubernetes.platform import Manifest, Owner, Platform

COMPONENT: Final = "autoscaling"
HPA_API: Final = "autoscaling/v2"
KEDA_API: Final = "keda.sh/v1alpha1"
SERVICE_LABEL: Final = OWNER_LABEL.replace(".", "_").replace("/", "_")
"""Label of metrics that says whose they are, as ServiceMonitors put it there."""


@dataclass(frozen=True, slots=True)
class ScalingMetric:
    """What is measured, of all workers together."""

    name: str
    """As adapters for the custom metrics API have to call it, an attribute of the InferenceService."""
    series: str
    """One that every service has which is to be scaled."""
    query: str
    """The same in PromQL; `%s` is what chooses the service's series, `%b` what tells several services apart."""
    target: float
    """For each worker, where the spec does not say."""


METRICS: Final = {
    # Gateways hold back what workers could not begin with soon: both queues are work that waits.
    "queue": ScalingMetric(
        "shoal_queued_requests",
        "shoal_worker_num_requests_waiting",
        # A gateway has the first of them from its first request on.
        "(sum%b(shoal_gateway_queue_requests{%s}) or 0 * sum%b(shoal_worker_num_requests_waiting{%s}))"
        " + sum%b(shoal_worker_num_requests_waiting{%s})",
        4.0,
    ),
    "kv_cache": ScalingMetric(
        "shoal_kv_cache_usage",
        "shoal_worker_kv_cache_usage_ratio",
        "sum%b(shoal_worker_kv_cache_usage_ratio{%s})",
        0.8,
    ),
    "tokensPerSecond": ScalingMetric(
        "shoal_tokens_per_second",
        "shoal_worker_generation_tokens_total",
        "sum%b(rate(shoal_worker_generation_tokens_total{%s}[1m]))",
        1.0,
    ),
}


def adapter_rules() -> list[dict[str, Any]]:
    """What prometheus-adapter has to be told (`rules` of its configuration) so that Kubernetes' own autoscaler finds
    METRICS as attributes of InferenceServices."""
    group, _, _ = API_VERSION.partition("/")
    resources = {
        "namespace": {"resource": "namespace"},
        SERVICE_LABEL: {"group": group, "resource": KIND.lower()},
    }
    return [
        {
            "seriesQuery": f'{metric.series}{{namespace!="",{SERVICE_LABEL}!=""}}',
            "resources": {"overrides": resources},
            "name": {"matches": "^.*$", "as": metric.name},
            "metricsQuery": metric.query.replace("%s", "<<.LabelMatchers>>").replace("%b", " by (<<.GroupBy>>) "),
        }
        for metric in METRICS.values()
    ]


def within_bounds(spec: InferenceServiceSpec) -> InferenceServiceSpec:
    """With a number of workers that autoscaling allows: a manifest applied anew brings its own back for a moment."""
    scaling = spec.autoscaling
    if scaling is None:
        return spec
    replicas = min(max(spec.workers.replicas, scaling.min_replicas), scaling.max_replicas)
    return msgspec.structs.replace(spec, workers=msgspec.structs.replace(spec.workers, replicas=replicas))


def autoscaling(service: InferenceService, platform: Platform, owner: Owner) -> list[Manifest]:
    """The HorizontalPodAutoscaler or ScaledObject; nothing without autoscaling."""
    scaling = service.spec.autoscaling
    if scaling is None:
        return []
    metric = METRICS[scaling.metric.name]
    target = scaling.metric.target or metric.target
    if scaling.engine == "hpa":
        spec = _hpa(service, scaling, metric, target)
        return [manifest(service, owner, HPA_API, "HorizontalPodAutoscaler", COMPONENT, spec=spec)]
    spec = _scaled_object(service, scaling, metric, target, platform, owner)
    return [manifest(service, owner, KEDA_API, "ScaledObject", COMPONENT, spec=spec)]


def _hpa(service: InferenceService, scaling: Autoscaling, metric: ScalingMetric, target: float) -> dict[str, Any]:
    measured = {
        "describedObject": _target(service),
        "metric": {"name": metric.name},
        "target": {"type": "AverageValue", "averageValue": f"{round(target * 1000)}m"},
    }
    return {
        "scaleTargetRef": _target(service),
        "minReplicas": scaling.min_replicas,
        "maxReplicas": scaling.max_replicas,
        "metrics": [{"type": "Object", "object": measured}],
        "behavior": _behavior(scaling),
    }


def _scaled_object(
    service: InferenceService,
    scaling: Autoscaling,
    metric: ScalingMetric,
    target: float,
    platform: Platform,
    owner: Owner,
) -> dict[str, Any]:
    chosen = f'namespace="{owner.namespace}",{SERVICE_LABEL}="{service.metadata.name}"'
    asked = {
        "serverAddress": platform.prometheus,
        "query": metric.query.replace("%s", chosen).replace("%b", ""),
        "threshold": f"{target:g}",
        # Without an answer workers stay as they are.
        "ignoreNullValues": "false",
    }
    return {
        "scaleTargetRef": _target(service),
        "minReplicaCount": scaling.min_replicas,
        "maxReplicaCount": scaling.max_replicas,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(scaling)}},
        "triggers": [{"type": "prometheus", "metricType": "AverageValue", "metadata": asked}],
    }


def _target(service: InferenceService) -> dict[str, str]:
    return {"apiVersion": API_VERSION, "kind": KIND, "name": service.metadata.name}


def _behavior(scaling: Autoscaling) -> dict[str, Any]:
    """Up at once, to twice as many at most each minute; down one by one, since each takes its cache along."""
    down = {
        "stabilizationWindowSeconds": scaling.scale_down_stabilization_seconds,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
    }
    up = {
        "stabilizationWindowSeconds": 0,
        "selectPolicy": "Max",
        "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": 60},
            {"type": "Pods", "value": 2, "periodSeconds": 60},
        ],
    }
    return {"scaleUp": up, "scaleDown": down}
