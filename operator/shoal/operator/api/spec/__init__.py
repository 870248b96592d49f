"""The fields of an `InferenceService`, as `shoal.dev/v1alpha1` spells them (camelCase in the file, snake_case here).

A value of these types has passed every rule that concerns one field alone; `rules.py` has those that concern several.
Adding a field means adding it here, with its range and a description: checking, error messages and did-you-mean follow.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from shoal.operator.api.fields import DnsLabel, ServiceName
from shoal.operator.api.spec.gateway import (
    ApiKeysSecret,
    Auth,
    EndpointPicker,
    Failover,
    FlowControl,
    Gateway,
    GatewayGrpc,
    GatewayHttp,
    GatewayService,
    Routing,
    TenantFlowControl,
    Tokenizer,
)
from shoal.operator.api.spec.model import Adapter, DraftModel, Model, ModelConfig, Speculative
from shoal.operator.api.spec.operation import (
    Autoscaling,
    AutoscalingMetric,
    Observability,
    PodMetadata,
    PodOverrides,
    PodTemplates,
    Rollout,
    SecretReference,
    Slo,
)
from shoal.operator.api.spec.section import Section
from shoal.operator.api.spec.workers import (
    DeviceName,
    KvCache,
    Parallelism,
    PeersSecret,
    Ratio,
    Resources,
    RoleWorkers,
    Simulated,
    SsdVolume,
    Workers,
)

API_VERSION: Final = "shoal.dev/v1alpha1"
KIND: Final = "InferenceService"


class Metadata(Section, frozen=True, kw_only=True):
    """Names the service, as on any Kubernetes object."""

    name: ServiceName
    namespace: DnsLabel | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class InferenceServiceSpec(Section, frozen=True, kw_only=True):
    """What to run."""

    model: Model
    workers: Workers = Workers()
    prefill: Annotated[
        RoleWorkers | None, Meta(description="Workers that only read prompts. Needs decode. On Kubernetes only.")
    ] = None
    decode: Annotated[
        RoleWorkers | None, Meta(description="Workers that only write answers. Needs prefill. On Kubernetes only.")
    ] = None
    ratio: Annotated[
        Ratio | None,
        Meta(description="Divides workers.replicas between prefill and decode. Default: they have their own replicas."),
    ] = None
    kv_cache: KvCache = KvCache()
    adapters: Annotated[tuple[Adapter, ...], Meta(max_length=64, description="LoRA adapters. On Kubernetes only.")] = ()
    gateway: Gateway = Gateway()
    tokenizer: Tokenizer = Tokenizer()
    routing: Routing = Routing()
    flow_control: FlowControl = FlowControl()
    failover: Failover = Failover()
    speculative: Annotated[Speculative | None, Meta(description="On Kubernetes only. Default: off.")] = None
    slo: Annotated[Slo | None, Meta(description="On Kubernetes only. Default: none.")] = None
    autoscaling: Annotated[Autoscaling | None, Meta(description="Default: workers.replicas stay as they are.")] = None
    rollout: Rollout = Rollout()
    observability: Observability = Observability()
    deletion_policy: Annotated[
        Literal["Delete", "Orphan"],
        Meta(
            description="What becomes of the service's objects when it is deleted. Orphan: they go on, without anybody "
            "to look after them. On Kubernetes only."
        ),
    ] = "Delete"
    image_pull_secrets: Annotated[
        tuple[SecretReference, ...],
        Meta(
            max_length=16,
            description="Secrets with which all pods of the service pull their images, beside those that the operator "
            "was given. On Kubernetes only.",
        ),
    ] = ()
    pod_template: Annotated[PodTemplates | None, Meta(description="Default: pods are as planned.")] = None
    paused: Annotated[
        bool, Meta(description="true: the operator leaves everything as it is, until false. On Kubernetes only.")
    ] = False


class InferenceService(Section, frozen=True, kw_only=True):
    """One model, served."""

    api_version: Literal["shoal.dev/v1alpha1"]
    kind: Literal["InferenceService"]
    metadata: Metadata
    spec: InferenceServiceSpec


__all__ = [
    "API_VERSION",
    "KIND",
    "Adapter",
    "ApiKeysSecret",
    "Auth",
    "Autoscaling",
    "AutoscalingMetric",
    "DeviceName",
    "DraftModel",
    "EndpointPicker",
    "Failover",
    "FlowControl",
    "Gateway",
    "GatewayGrpc",
    "GatewayHttp",
    "GatewayService",
    "InferenceService",
    "InferenceServiceSpec",
    "KvCache",
    "Metadata",
    "Model",
    "ModelConfig",
    "Observability",
    "Parallelism",
    "PeersSecret",
    "PodMetadata",
    "PodOverrides",
    "PodTemplates",
    "Ratio",
    "Resources",
    "RoleWorkers",
    "Rollout",
    "Routing",
    "SecretReference",
    "Section",
    "Simulated",
    "Slo",
    "Speculative",
    "SsdVolume",
    "TenantFlowControl",
    "Tokenizer",
    "Workers",
]
