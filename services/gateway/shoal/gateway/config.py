"""The gateway's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from shoal.config import option
from shoal.gateway.routing.policies import PolicyName
from shoal.telemetry.logs import LogFormat

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(ge=0)]
PositiveSeconds = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Shoal's public API: gRPC and OpenAI HTTP in front of the mesh."""

    mesh_address: str = option(
        help="host:port of Envoy's mesh listener, which leads to the workers. A worker's own address also works, for "
        "one worker without Envoy."
    )
    tokenizer_address: str = option(
        help="The tokenizers as a gRPC target: host:port, dns:///name:port for all addresses of a name, "
        "ipv4:ADDRESS:PORT,ADDRESS:PORT,... Calls take turns."
    )
    workers_file: str = option(
        "", "Envoy's EDS file (JSON) listing the workers; watched. Empty: mesh_address is the only worker."
    )
    host: str = option("127.0.0.1", "Address to listen on.")
    port: Port = option(50051, "Port for gRPC; 0 picks a free one.")
    http_port: Port = option(8000, "Port for the OpenAI HTTP API; 0 picks a free one.")
    metrics_port: Port = option(9051, "Port for Prometheus metrics; 0 picks a free one.")
    api_keys_file: str = option("", "Lines of tenant:sha256-of-key in hex. Empty: anybody may call, as one tenant.")
    max_request_bytes: Annotated[int, Meta(ge=1024, le=64 << 20)] = option(
        8 << 20, "Largest request accepted, in bytes; larger ones are refused with PAYLOAD_TOO_LARGE."
    )
    max_request_s: PositiveSeconds = option(3600.0, "Longest that a request may take, in seconds.")
    mesh_connections: Annotated[int, Meta(ge=1, le=64)] = option(
        2, "HTTP/2 connections to the mesh, so that several Envoy threads share the work."
    )
    routing_policy: PolicyName = option("shoal", "How workers are chosen.")
    prefix_index_keys: Annotated[int, Meta(ge=1, le=1 << 30)] = option(
        1 << 22, "KV blocks remembered for routing, over all workers (about 60 bytes each, taken as they come)."
    )
    kv_event_silence_s: Seconds = option(
        5.0,
        "A worker whose KV events stop for this long is picked as if its cache were empty, and reported; 0: never.",
    )
    peers_file: str = option(
        "",
        "EDS file (JSON) listing the peer addresses of all gateways, this one included; watched. Empty: no others.",
    )
    peer_port: Port = option(
        0, "Port for the other gateways, with a peers file; 0 picks a free one. The edge must not lead to it."
    )
    endpoint_picker: Literal["on", "off"] = option(
        "off", "Whether other proxies may ask for picks, as the Gateway API Inference Extension has it."
    )
    endpoint_picker_port: Port = option(9002, "Port for them; 0 picks a free one.")
    explain_requests: Annotated[int, Meta(ge=0, le=1 << 20)] = option(
        4096, "Requests that `Explain` remembers, at 2 to 10 KB each."
    )
    flow_control: Literal["on", "off"] = option(
        "on", "Whether requests wait here while the workers are full; off: they all wait at workers."
    )
    max_queued_requests: Annotated[int, Meta(ge=1, le=1 << 20)] = option(
        4096, "Requests that may wait in this gateway; more are refused with RESOURCE_EXHAUSTED, HTTP 429."
    )
    max_queued_tokens: Annotated[int, Meta(ge=1, le=1 << 32)] = option(16 << 20, "The same in prompt tokens.")
    max_queue_s: PositiveSeconds = option(
        60.0, "How long a request may wait; one that would wait longer, or beyond its deadline, is refused at once."
    )
    max_queued_requests_per_tenant: Annotated[int, Meta(ge=0, le=1 << 20)] = option(
        0, "Requests of one tenant that may wait; 0: as many as of all."
    )
    max_queued_tokens_per_tenant: Annotated[int, Meta(ge=0, le=1 << 32)] = option(0, "The same in prompt tokens.")
    tenant_weights: str = option(
        "", "name=weight,...: shares of the service while several tenants wait (0.01 to 1000; others have 1)."
    )
    tenant_max_queued_requests: str = option("", "name=requests,...: other limits for some tenants.")
    tenant_max_queued_tokens: str = option("", "name=tokens,...: the same in prompt tokens.")
    priority_step_s: Seconds = option(
        5.0,
        "A request passes those of its tenant that have waited less than this much longer, for each step that its "
        "priority is better; 0: priorities change nothing here.",
    )
    worker_queue_ratio: Annotated[float, Meta(ge=0, le=100)] = option(
        0.25, "Requests sent to workers beyond what they run at once, as a part of that, to keep their steps full."
    )
    num_gateways: Annotated[int, Meta(ge=1, le=1024)] = option(
        1, "Gateways that share the workers; each sends its part of what they can take."
    )
    max_moves: Annotated[int, Meta(ge=0)] = option(
        5,
        "How often a stream whose worker was lost, drained or stalled goes on at another one without progress in "
        "between; 0: it fails at once.",
    )
    stream_stall_timeout_s: Seconds = option(
        30.0, "A stream that gets no token for this long moves, if another worker could go on with it; 0: never."
    )
    first_token_timeout_s: Seconds = option(
        300.0, "The same before the first token, queue and prompt included; 0: never."
    )
    rebalance: Literal["on", "off"] = option(
        "on",
        "Whether requests move, as after a loss, when another worker is foreseen to be so much quicker that it pays; "
        "with the policy shoal only, and never with max_moves 0.",
    )
    move_wait_s: Seconds = option(
        60.0, "How long a stream that has delivered tokens waits for a worker when none is ready."
    )
    drain_timeout_s: PositiveSeconds = option(60.0, "How long running streams may go on after SIGTERM, in seconds.")
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "Least severe log lines shown.")
    log_format: LogFormat = option("auto", "auto is readable on a terminal, JSON elsewhere.")
    otlp_endpoint: str = option("", "http://host:4317 of an OpenTelemetry collector; empty: no traces.")
