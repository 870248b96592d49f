"""What clients meet: the public API, how it chooses workers, and what it does when they are full or gone."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shoal.operator.api.fields import FilePath, ObjectName, QueuedRequests, QueuedTokens, SecretKey, TenantName
from shoal.operator.api.spec.section import Section


class ApiKeysSecret(Section, frozen=True, kw_only=True):
    """One key of a Secret."""

    name: Annotated[ObjectName, Meta(description="The Secret, in the namespace of the InferenceService.")]
    key: Annotated[SecretKey, Meta(description="Which of its values is the file.")] = "api-keys"


class Auth(Section, frozen=True, kw_only=True):
    """Who may call: one of the two."""

    api_keys_file: Annotated[
        FilePath | None, Meta(description="File of accepted API keys, lines of tenant:sha256-of-key. On one machine.")
    ] = None
    api_keys_secret: Annotated[ApiKeysSecret | None, Meta(description="The same as a Secret. On Kubernetes.")] = None


class EndpointPicker(Section, frozen=True, kw_only=True):
    """Picks for other proxies, as the Gateway API Inference Extension asks for them."""

    port: Annotated[int, Meta(ge=1, le=65535, description="Where proxies ask.")] = 9002


Port = Annotated[int, Meta(ge=1, le=65535)]


class GatewayGrpc(Section, frozen=True, kw_only=True):
    """Where gRPC alone is served."""

    port: Annotated[
        Port | None, Meta(description="One more port of the Service. On Kubernetes only. Default: none.")
    ] = None


class GatewayHttp(Section, frozen=True, kw_only=True):
    """Where the OpenAI-compatible API alone is served."""

    enabled: Annotated[bool, Meta(description="false: clients are served by gRPC only. On Kubernetes only.")] = True
    port: Annotated[
        Port | None, Meta(description="One more port of the Service. On Kubernetes only. Default: none.")
    ] = None


class GatewayService(Section, frozen=True, kw_only=True):
    """The public Service. On Kubernetes only."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    annotations: Annotated[dict[str, str], Meta(max_length=64, description="For load balancers and the like.")] = (
        msgspec.field(default_factory=dict)
    )


class Gateway(Section, frozen=True, kw_only=True):
    """The public API."""

    replicas: Annotated[int, Meta(ge=1, le=16, description="Gateway processes.")] = 1
    port: Annotated[
        int, Meta(ge=0, le=65535, description="Where clients connect, by gRPC or HTTP; 0 picks a free one, or 8080.")
    ] = 0
    grpc: GatewayGrpc = GatewayGrpc()
    http: GatewayHttp = GatewayHttp()
    auth: Auth | None = None
    service: GatewayService = GatewayService()
    endpoint_picker: Annotated[EndpointPicker | None, Meta(description="Default: other proxies cannot ask.")] = None


class Failover(Section, frozen=True, kw_only=True):
    """When a stream goes on at another worker."""

    max_moves: Annotated[
        int, Meta(ge=0, le=1000, description="Moves in a row without progress; 0: a stream ends with its worker.")
    ] = 5
    stream_stall_seconds: Annotated[
        float, Meta(ge=0, le=86400, description="Longest silence after the first token; 0: any.")
    ] = 30.0
    first_token_seconds: Annotated[
        float, Meta(ge=0, le=86400, description="Longest silence before it, queue and prompt included; 0: any.")
    ] = 300.0
    move_wait_seconds: Annotated[
        float, Meta(ge=0, le=86400, description="How long a stream waits for a worker when none is ready.")
    ] = 60.0
    rebalance: Annotated[
        bool,
        Meta(
            description="Whether requests also move when another worker is foreseen to be so much quicker that it "
            "pays. Policy shoal only."
        ),
    ] = True


class Tokenizer(Section, frozen=True, kw_only=True):
    """Text to token ids and back."""

    replicas: Annotated[int, Meta(ge=1, le=16, description="Tokenizer processes.")] = 1


class Routing(Section, frozen=True, kw_only=True):
    """How the gateway chooses a worker."""

    policy: Annotated[
        Literal["shoal", "least_load", "round_robin", "prefix_sticky", "overlap_cost", "orca", "prefix_hash"],
        Meta(
            description="How to score workers. orca and prefix_hash leave the choice to Envoy: by the load that "
            "workers report, or by a hash of how the prompt begins."
        ),
    ] = "shoal"


class TenantFlowControl(Section, frozen=True, kw_only=True):
    """One tenant's part of the queue."""

    name: Annotated[TenantName, Meta(description="As in the API keys file.")]
    weight: Annotated[
        float,
        Meta(ge=0.01, le=1000, description="Share of the service while several tenants wait; others have 1."),
    ] = 1.0
    max_queued_requests: Annotated[QueuedRequests | None, Meta(description="Default: that of every tenant.")] = None
    max_queued_tokens: Annotated[QueuedTokens | None, Meta(description="Default: that of every tenant.")] = None


class FlowControl(Section, frozen=True, kw_only=True):
    """Requests wait in the gateways while the workers are full. Limits are of each gateway."""

    enabled: Annotated[bool, Meta(description="false: every request goes to a worker, and waits there.")] = True
    max_queued_requests: Annotated[QueuedRequests, Meta(description="Requests that may wait.")] = 4096
    max_queued_tokens: Annotated[QueuedTokens, Meta(description="Their prompt tokens.")] = 16 << 20
    max_queue_seconds: Annotated[
        float, Meta(ge=0.1, le=86400, description="How long a request may wait before it is refused.")
    ] = 60.0
    max_queued_requests_per_tenant: Annotated[
        QueuedRequests | None, Meta(description="Requests of one tenant. Default: as many as of all.")
    ] = None
    max_queued_tokens_per_tenant: Annotated[
        QueuedTokens | None, Meta(description="Prompt tokens of one tenant. Default: as many as of all.")
    ] = None
    priority_step_seconds: Annotated[
        float,
        Meta(ge=0, le=86400, description="Waiting time that one step of a request's priority is worth; 0: none."),
    ] = 5.0
    worker_queue_ratio: Annotated[
        float,
        Meta(ge=0, le=100, description="Requests sent to a worker beyond maxNumSeqs, as a part of it."),
    ] = 0.25
    tenants: Annotated[tuple[TenantFlowControl, ...], Meta(max_length=256, description="Tenants that differ.")] = ()
