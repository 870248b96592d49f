"""Runs a model worker: one front process (this one) and one engine process."""

from __future__ import annotations

import asyncio
import sys

import structlog
import uvloop

from shoal.config import describe, load_or_exit
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.exposed import find_exposed
from shoal.model_worker.front import run_front
from shoal.model_worker.unsupported import find_unsupported
from shoal.telemetry import setup_logs, setup_traces


def main() -> None:
    """The command `shoal-worker`. Exit status: 0 drained, 1 the engine failed, 2 bad configuration."""
    config = load_or_exit(WorkerConfig, program="shoal-worker").with_device_defaults()
    reason = find_unsupported(config) or find_exposed(config)
    if reason is not None:
        print(f"shoal-worker: {reason}", file=sys.stderr)
        sys.exit(2)
    setup_logs("model_worker", level=config.log_level, log_format=config.log_format)
    structlog.get_logger("shoal.model_worker").info("configuration", **describe(config))
    flush_traces = setup_traces("model_worker", config.otlp_endpoint)
    uvloop.install()
    status = asyncio.run(run_front(config))
    flush_traces()
    sys.exit(status)


if __name__ == "__main__":
    main()
