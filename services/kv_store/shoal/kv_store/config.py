"""Settings of the KV store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from shoal.config import option

Port = Annotated[int, Meta(ge=0, le=65535)]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvStoreConfig:
    """Keeps KV blocks in memory and on disk for the workers of one node."""

    socket_path: str = option(help="Unix socket for same-host clients; its folder exists and is this node's alone.")
    socket_mode: str = option("600", "Octal mode of the socket: who may connect.")
    host: str = option("127.0.0.1", "Address to listen on.")
    port: Port = option(50054, "Port to listen on; 0 picks a free one.")
    metrics_port: Port = option(9054, "Port of Prometheus /metrics; 0 picks a free one.")
    memory_bytes: Annotated[int, Meta(ge=1 << 16)] = option(4 << 30, "Memory for blocks.")
    chunk_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 36)] = option(
        64 << 20, "Memory that goes to one tenant at a time; at least a block, a multiple of 4096."
    )
    huge_pages: Literal["off", "transparent", "reserved"] = option(
        "transparent", "Pages of 2 MiB: none, where the kernel grants them, or from its reserved pool."
    )
    disk_folder: str = option("", "Folder of the SSD tier, of this store alone; empty: no SSD tier.")
    disk_bytes: Annotated[int, Meta(ge=1 << 20)] = option(64 << 30, "Most bytes that the SSD tier takes.")
    disk_segment_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 32)] = option(256 << 20, "Of a file of the SSD tier.")
    disk_io_timeout_s: Annotated[float, Meta(gt=0, le=60)] = option(5.0, "Time after which an I/O counts as stalled.")
    disk_codec: Literal["none", "zstd"] = option(
        "none", "Lossless compression on the SSD: bytes shuffled by element, then zstd. Needs the package zstandard."
    )
    disk_element_bytes: Literal[1, 2, 4] = option(2, "Bytes of an element of KV, for disk_codec: 1 for fp8 codes.")
    recompute_s: Annotated[float, Meta(ge=0)] = option(0.01, "What computing a block again takes, about.")
    policy: Literal["adaptive", "arc", "lru", "s3_fifo"] = option("adaptive", "Which blocks stay in memory.")
    tenant_quota_bytes: Annotated[int, Meta(ge=0)] = option(0, "Most memory of one tenant's blocks; 0: all of it.")
    tenant_disk_quota_bytes: Annotated[int, Meta(ge=0)] = option(0, "Most disk of one tenant's blocks; 0: all of it.")
    tenants_file: str = option("", "TOML file of tenants, sha256 of their tokens, quotas; empty: any tenant, no token.")
    ttl_s: Annotated[float, Meta(ge=0)] = option(0.0, "Time after which a block that nobody used goes; 0: never.")
    pinned_fraction: Annotated[float, Meta(ge=0, le=1)] = option(0.5, "Most of a tenant's memory that may be pinned.")
    max_batch_size: Annotated[int, Meta(ge=1, le=1 << 16)] = option(1024, "Most keys of one call.")
    max_sessions: Annotated[int, Meta(ge=1)] = option(256, "Most clients at a time.")
    max_staging_bytes: Annotated[int, Meta(ge=0)] = option(1 << 30, "Memory that clients write through, of all.")
    lease_timeout_s: Annotated[float, Meta(gt=0)] = option(30.0, "Longest time a lease or a reservation holds.")
    event_buffer: Annotated[int, Meta(ge=1)] = option(65_536, "Events kept for watchers that fall behind.")
    copy_threads: Annotated[int, Meta(ge=1, le=64)] = option(2, "Threads that copy and verify what is committed.")
    peers: str = option("", "Stores to share blocks with: host:port, ..., or file:PATH, one a line; empty: none.")
    peer_address: str = option("", "What the others call this store; empty: where it listens for them.")
    peer_host: str = option("127.0.0.1", "Address to listen on for other stores.")
    peer_port: Port = option(50064, "Port for calls of other stores; 0 picks a free one.")
    peer_data_port: Port = option(50074, "Port for payloads to other stores; 0 picks a free one.")
    peer_transport: Literal["tcp", "grpc"] = option("tcp", "How payloads travel; grpc needs no data port.")
    peer_secret_file: str = option("", "File with a secret of all stores that share, 16 bytes or more.")
    peer_tls_cert: str = option("", "PEM file of this store's certificate, for calls and payloads of other stores.")
    peer_tls_key: str = option("", "PEM file of its key.")
    peer_tls_ca: str = option("", "PEM file of the authority that signs the certificates of all stores that share.")
    peer_replicas: Annotated[int, Meta(ge=1, le=8)] = option(2, "Stores that are asked for a chain, and hold hot ones.")
    peer_timeout_s: Annotated[float, Meta(gt=0, le=10)] = option(0.25, "Longest wait for one call of another store.")
    peer_transfers: Annotated[int, Meta(ge=1, le=64)] = option(4, "Transfers at a time, in each direction.")
    drain_timeout_s: Annotated[float, Meta(ge=0)] = option(10.0, "Time for running calls after SIGTERM.")
    otlp_endpoint: str = option("", "Where traces go (http://host:4317); empty: nowhere.")
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "Least severe log line to print.")
