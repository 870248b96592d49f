"""How the service is kept: its size, changes and end, what is seen of it, and what its pods have beside the plan."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shoal.operator.api.fields import HttpUrl, ObjectName
from shoal.operator.api.spec.section import Section


class Slo(Section, frozen=True, kw_only=True):
    """What clients are to experience, at the 95th percentile."""

    ttft_milliseconds: Annotated[
        Annotated[int, Meta(ge=1, le=3_600_000)] | None, Meta(description="Time to the first token.")
    ] = None
    itl_milliseconds: Annotated[
        Annotated[int, Meta(ge=1, le=3_600_000)] | None, Meta(description="Time between one token and the next.")
    ] = None


class AutoscalingMetric(Section, frozen=True, kw_only=True):
    """What is measured of each worker, and how much of it there should be on average."""

    name: Annotated[
        Literal["queue", "kv_cache", "tokensPerSecond"],
        Meta(description="Requests that wait, share of the KV cache in use, or tokens made."),
    ] = "queue"
    target: Annotated[
        Annotated[float, Meta(gt=0, le=10_000_000)] | None,
        Meta(description="Default: queue 4, kv_cache 0.8; tokensPerSecond needs one."),
    ] = None


class Autoscaling(Section, frozen=True, kw_only=True):
    """Sets workers.replicas by load. On Kubernetes only."""

    min_replicas: Annotated[int, Meta(ge=1, le=64, description="At least so many workers.")] = 1
    max_replicas: Annotated[int, Meta(ge=1, le=64, description="At most so many.")]
    metric: AutoscalingMetric = AutoscalingMetric()
    engine: Annotated[
        Literal["hpa", "keda"],
        Meta(description="hpa: Kubernetes' own, which needs an adapter for the metric. keda: asks Prometheus itself."),
    ] = "hpa"
    scale_down_stabilization_seconds: Annotated[
        int, Meta(ge=0, le=3600, description="How long less must have been enough before workers go.")
    ] = 300


class Rollout(Section, frozen=True, kw_only=True):
    """How workers are replaced when the spec changes."""

    strategy: Annotated[
        Literal["Surge", "Recreate"],
        Meta(
            description="Surge: those that take over start first, which needs room for both. Recreate: those that go "
            "make room first."
        ),
    ] = "Surge"
    max_surge: Annotated[int, Meta(ge=1, le=64, description="Workers beyond replicas while that lasts.")] = 1
    drain_seconds: Annotated[
        int,
        Meta(
            ge=0,
            le=3600,
            description="How long running requests of a worker or gateway that goes may go on; gateways have at "
            "least a minute.",
        ),
    ] = 60


class Observability(Section, frozen=True, kw_only=True):
    """What can be seen from outside."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: Annotated[HttpUrl | None, Meta(description="OTLP/gRPC collector for traces.")] = None
    access_log: Annotated[bool, Meta(description="Envoy writes one JSON line a request.")] = False
    service_monitor: Annotated[
        bool, Meta(description="Prometheus is told where metrics are, if the cluster knows ServiceMonitors.")
    ] = True


class SecretReference(Section, frozen=True, kw_only=True):
    """A Secret of the service's namespace."""

    name: ObjectName


class PodMetadata(Section, frozen=True, kw_only=True):
    """Added to what is planned."""

    labels: Annotated[dict[str, str], Meta(max_length=64)] = msgspec.field(default_factory=dict)
    annotations: Annotated[dict[str, str], Meta(max_length=64)] = msgspec.field(default_factory=dict)


class PodOverrides(Section, frozen=True, kw_only=True):
    """As a Kubernetes pod template, merged into the planned one: lists by their names, the rest field by field."""

    metadata: PodMetadata = PodMetadata()
    spec: Annotated[dict[str, Any], Meta(description="Fields of a Kubernetes PodSpec.")] = msgspec.field(
        default_factory=dict
    )


class PodTemplates(Section, frozen=True, kw_only=True):
    """What pods have beside what is planned, or otherwise. On Kubernetes only."""

    worker: PodOverrides | None = None
    gateway: PodOverrides | None = None
    tokenizer: PodOverrides | None = None
    kv_store: PodOverrides | None = None
    lora_registry: PodOverrides | None = None
