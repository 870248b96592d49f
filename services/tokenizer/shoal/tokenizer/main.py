"""The `shoal-tokenizer` command."""

from __future__ import annotations

import os
import sys

import structlog
import uvloop

from shoal.api.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from shoal.artifacts import ArtifactError
from shoal.config import describe, load_or_exit
from shoal.rpc.server import Registration, ServerOptions, serve_until_stopped, start_server, stop_signal
from shoal.telemetry import serve_metrics, setup_logs, setup_traces
from shoal.tokenizer.config import TokenizerConfig
from shoal.tokenizer.definition import TokenizerDefinition
from shoal.tokenizer.errors import TokenizerError
from shoal.tokenizer.service import load, open_servicer
from shoal.tokenizer.vocabulary import Vocabulary

_NAME = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"].full_name


def main() -> None:
    """Runs the service until SIGTERM. Exits 2 for wrong settings, 1 when the model or a port cannot be had."""
    config = load_or_exit(TokenizerConfig, program="shoal-tokenizer")
    setup_logs("tokenizer", level=config.log_level)
    log = structlog.get_logger("shoal.tokenizer")
    log.info("starting", **describe(config))
    # Said explicitly, or the library turns its threads off, with a warning, in a process that starts others.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    stop_traces = setup_traces("shoal-tokenizer", config.otlp_endpoint)
    try:
        loaded = load(config)  # outside of the event loop, so that a signal ends a long download at once
        uvloop.run(_serve(config, *loaded))
    except (ArtifactError, TokenizerError, OSError) as error:
        log.error("cannot serve", error=str(error))
        sys.exit(1)
    finally:
        stop_traces()


async def _serve(config: TokenizerConfig, definition: TokenizerDefinition, vocabulary: Vocabulary) -> None:
    stop = stop_signal()
    max_message_bytes = max(8 << 20, 6 * config.max_text_bytes)  # a text may become an id a byte, each of five bytes
    options = ServerOptions(config.host, config.port, config.drain_timeout_s, max_message_bytes)
    metrics_port, stop_metrics = serve_metrics(config.host, config.metrics_port)
    structlog.get_logger("shoal.tokenizer").info("metrics", address=f"{config.host}:{metrics_port}")
    try:
        async with open_servicer(config, definition, vocabulary) as servicer:
            add = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
            server = await start_server(options, [Registration(add, servicer, _NAME)])
            await serve_until_stopped(server, stop, options)
    finally:
        stop_metrics()


if __name__ == "__main__":
    main()
