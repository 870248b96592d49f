"""The fields of an `InferenceService`, as `shoal.dev/v1alpha1` spells them (camelCase in the file, snake_case here).

A value of these types has passed every rule that concerns one field alone; `rules.py` has those that concern several.
Adding a field means adding it here, with its range and a description: checking, error messages and did-you-mean follow.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shoal.operator.api.fields import (
    ByteQuantity,
    CpuQuantity,
    DnsLabel,
    FilePath,
    HttpUrl,
    ModelName,
    ObjectName,
    QueuedRequests,
    QueuedTokens,
    SecretKey,
    Sha256,
    TenantName,
    Uri,
)

API_VERSION = "shoal.dev/v1alpha1"
KIND = "InferenceService"
DeviceName = Literal["cpu", "cuda", "simulated"]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What all parts of the manifest share."""


class Metadata(Section, frozen=True, kw_only=True):
    """Names the service, as on any Kubernetes object."""

    name: DnsLabel
    namespace: DnsLabel | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Model(Section, frozen=True, kw_only=True):
    """Which weights to serve, and as what."""

    name: Annotated[ModelName, Meta(description="What clients call the model.")]
    uri: Annotated[Uri, Meta(description="Where the weights are.")]
    sha256: Annotated[Sha256 | None, Meta(description="Digest that the file must have.")] = None
    revision: Annotated[
        Annotated[str, Meta(min_length=1, max_length=256)] | None,
        Meta(description="Commit, tag or branch, for hf:// only."),
    ] = None
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Meta(description="Type of weights in memory.")] = "auto"
    max_model_len: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 24)] | None,
        Meta(description="Longest prompt plus output, in tokens. Default: what the model allows."),
    ] = None
    load_format: Annotated[
        Literal["auto", "safetensors", "gguf", "dummy"], Meta(description="How to read the weights.")
    ] = "auto"
    chat_template: Annotated[
        FilePath | None, Meta(description="File of a Jinja template that replaces the model's own.")
    ] = None
    cache_claim: Annotated[
        ObjectName | None,
        Meta(
            description="PersistentVolumeClaim for fetched models, mounted at /models in every pod that reads them. On "
            "Kubernetes only. Default: each pod fetches its own copy."
        ),
    ] = None


class Simulated(Section, frozen=True, kw_only=True):
    """How long the steps of a simulated device take."""

    model: Annotated[
        Literal["llama-3.1-8b-h100"] | None,
        Meta(description="A model on a GPU whose steps were measured; brings that GPU's sizes. Default: none."),
    ] = None
    time_scale: Annotated[
        float, Meta(gt=0, le=1000, description="Multiplies the time of every step; 0.1 is ten times as fast.")
    ] = 1.0
    step_milliseconds: Annotated[float, Meta(ge=0, le=60_000, description="Time of a step, without a model.")] = 0.0
    token_microseconds: Annotated[
        float, Meta(ge=0, le=1_000_000, description="Time added for each of its tokens, without a model.")
    ] = 0.0


class Resources(Section, frozen=True, kw_only=True):
    """What a pod asks of its node. On Kubernetes only."""

    cpu: Annotated[CpuQuantity | None, Meta(description="Cores. Default: as many as compute threads, on a GPU 4.")] = (
        None
    )
    memory: Annotated[
        ByteQuantity | None, Meta(description="Also its limit. Default: none is asked for, and any may be used.")
    ] = None


class Workers(Section, frozen=True, kw_only=True):
    """The engines."""

    replicas: Annotated[int, Meta(ge=1, le=64, description="Engines, each with its own copy of the weights.")] = 1
    device: Annotated[
        DeviceName,
        Meta(
            description="What they compute on. cuda: an NVIDIA GPU for each. simulated: made-up tokens, to try "
            "everything around the engine."
        ),
    ] = "cpu"
    simulated: Annotated[
        Simulated | None, Meta(description="For device simulated only. Default: steps take no time.")
    ] = None
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="Compute threads of each worker. Default: cores / replicas."),
    ] = None
    max_num_seqs: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="Most sequences in one step. Default: 16, on a GPU 512."),
    ] = None
    max_num_batched_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 20)] | None,
        Meta(description="Most tokens in one step. Default: 512, on a GPU 8192."),
    ] = None
    gpu_memory_utilization: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(
            description="Share of the GPU's memory that a worker may use; what weights and steps leave of it holds KV "
            "blocks. For device cuda only. Default: 0.9."
        ),
    ] = None
    max_queued_requests: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Waiting requests beyond which a worker answers RESOURCE_EXHAUSTED.")
    ] = 256
    resources: Resources = Resources()


class KvCache(Section, frozen=True, kw_only=True):
    """The paged KV cache of each worker, and the node's store behind it."""

    block_size: Annotated[
        Literal[8, 16, 32, 64, 128] | None, Meta(description="Tokens in a block. Default: 16, on a GPU 64.")
    ] = None
    memory: Annotated[
        ByteQuantity | None,
        Meta(description="Memory for blocks, each worker. Not for device cuda. Default: 512Mi."),
    ] = None
    cpu: Annotated[
        ByteQuantity | None,
        Meta(
            description="Memory of the node's KV store, which its workers share: blocks that they give up, or that "
            "another one computed, are loaded from there. Default: no store."
        ),
    ] = None
    ssd: Annotated[
        ByteQuantity | None,
        Meta(description="Disk of the KV store, behind its memory. Needs cpu and ssdFolder. Default: none."),
    ] = None
    ssd_folder: Annotated[FilePath | None, Meta(description="Where that is: a folder of this service alone.")] = None


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


class Gateway(Section, frozen=True, kw_only=True):
    """The public API."""

    replicas: Annotated[int, Meta(ge=1, le=16, description="Gateway processes.")] = 1
    port: Annotated[int, Meta(ge=0, le=65535, description="Where clients connect; 0 picks a free port.")] = 0
    auth: Auth | None = None
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


class Observability(Section, frozen=True, kw_only=True):
    """What can be seen from outside."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: Annotated[HttpUrl | None, Meta(description="OTLP/gRPC collector for traces.")] = None
    access_log: Annotated[bool, Meta(description="Envoy writes one JSON line a request.")] = False


class InferenceServiceSpec(Section, frozen=True, kw_only=True):
    """What to run."""

    model: Model
    workers: Workers = Workers()
    kv_cache: KvCache = KvCache()
    gateway: Gateway = Gateway()
    tokenizer: Tokenizer = Tokenizer()
    routing: Routing = Routing()
    flow_control: FlowControl = FlowControl()
    failover: Failover = Failover()
    observability: Observability = Observability()
    paused: Annotated[
        bool, Meta(description="true: the operator leaves everything as it is, until false. On Kubernetes only.")
    ] = False


class InferenceService(Section, frozen=True, kw_only=True):
    """One model, served."""

    api_version: Literal["shoal.dev/v1alpha1"]
    kind: Literal["InferenceService"]
    metadata: Metadata
    spec: InferenceServiceSpec
