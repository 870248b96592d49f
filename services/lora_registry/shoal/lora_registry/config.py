"""Settings of the LoRA registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from shoal.config import option

Port = Annotated[int, Meta(ge=0, le=65535)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRegistryConfig:
    """Keeps LoRA adapters as immutable, verified versions."""

    folder: str = option(help="Where adapters are kept, a folder of this registry alone.")
    host: str = option("127.0.0.1", "Address to listen on.")
    port: Port = option(50055, "Port to listen on; 0 picks a free one.")
    metrics_port: Port = option(9055, "Port of Prometheus /metrics; 0 picks a free one.")
    max_bytes: Annotated[int, Meta(ge=1)] = option(20 << 30, "Most bytes of all versions that are kept.")
    max_adapter_bytes: Annotated[int, Meta(ge=1)] = option(2 << 30, "Most bytes of one adapter.")
    adapters_file: str = option(
        "", "JSON list of {name, uri, sha256?, rank?} that are to be there; read again as it changes. Empty: none."
    )
    adapters_poll_s: Annotated[float, Meta(gt=0, le=3600)] = option(2.0, "How often to look whether it changed.")
    adapters_retry_s: Annotated[float, Meta(gt=0, le=3600)] = option(
        5.0, "When to try again what could not be published; twice as long each time, up to five minutes."
    )
    start_wait_s: Annotated[float, Meta(ge=0)] = option(
        120.0, "Longest time that adapters of the file may take before calls are answered without them."
    )
    read_only: bool = option(False, "Whether adapters come from the file alone: nobody can publish or remove.")
    base_config: str = option(
        "",
        "config.json of the model that is served, a path or source; adapters that do not fit are refused. Empty: not "
        "compared.",
    )
    source_cache: str = option("", "Folder where fetched sources stay, for the next time; empty: they do not.")
    offline: bool = option(False, "Never use the network.")
    fetch_timeout_s: Annotated[float, Meta(gt=0)] = option(1800.0, "Longest time that fetching an adapter may take.")
    max_publishes: Annotated[int, Meta(ge=1, le=64)] = option(4, "Adapters that are fetched at a time.")
    max_pending: Annotated[int, Meta(ge=1)] = option(64, "Calls that may wait to publish; more are refused.")
    max_fetches: Annotated[int, Meta(ge=1, le=4096)] = option(64, "Files that are sent at a time; more are refused.")
    event_buffer: Annotated[int, Meta(ge=1)] = option(1024, "Events kept for watchers that come back.")
    drain_timeout_s: Annotated[float, Meta(ge=0)] = option(10.0, "Time for running calls after SIGTERM.")
    otlp_endpoint: str = option("", "Where traces go (http://host:4317); empty: nowhere.")
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "Least severe log line to print.")
