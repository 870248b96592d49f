"""The status of an InferenceService, as the operator writes it and `kubectl get isvc` shows it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from shoal.operator.api.spec import Section

Phase = Literal["Starting", "Ready", "Updating", "Degraded", "Paused", "Failed"]
ConditionType = Literal[
    "Accepted",
    "Planned",
    "GatewaysReady",
    "WorkersReady",
    "RoutesProgrammed",
    "CacheEventsFlowing",
    "Degraded",
    "Ready",
]
ConditionState = Literal["True", "False", "Unknown"]


class Condition(Section, frozen=True, kw_only=True):
    """One thing that is so or not, as in every Kubernetes object."""

    type: Annotated[str, Meta(max_length=316)]
    status: ConditionState
    reason: Annotated[str, Meta(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)]
    message: Annotated[str, Meta(max_length=32768)]
    last_transition_time: str
    """When `status` changed last, in RFC 3339."""
    observed_generation: int


class RoleStatus(Section, frozen=True, kw_only=True):
    """How many pods of a role there are."""

    desired: int = 0
    ready: int = 0
    current: Annotated[
        int | None,
        Meta(description="How many there are, ready or not, at most those asked for: what scaling counts."),
    ] = None


class Endpoints(Section, frozen=True, kw_only=True):
    """Where clients connect: inside the cluster, and outside of it."""

    grpc: Annotated[str | None, Meta(description="host:port for gRPC.")] = None
    http: Annotated[str | None, Meta(description="Base of the OpenAI-compatible API, without /v1.")] = None
    external: Annotated[
        str | None, Meta(description="host:port outside of the cluster, once its load balancer has said it.")
    ] = None


class InferenceServiceStatus(Section, frozen=True, kw_only=True):
    """What the operator saw last."""

    observed_generation: Annotated[int | None, Meta(description="Generation of the spec that the rest is about.")] = (
        None
    )
    phase: Phase | None = None
    message: Annotated[str | None, Meta(description="What to know, or to do, in one line.")] = None
    gateways: RoleStatus | None = None
    tokenizers: RoleStatus | None = None
    workers: RoleStatus | None = None
    prefill: RoleStatus | None = None
    decode: RoleStatus | None = None
    kv_stores: RoleStatus | None = None
    lora_registries: RoleStatus | None = None
    workers_ready: Annotated[str | None, Meta(description="ready/desired, for people.")] = None
    worker_selector: Annotated[str | None, Meta(description="Label selector of the workers' pods.")] = None
    endpoints: Endpoints | None = None
    conditions: tuple[Condition, ...] | None = None
