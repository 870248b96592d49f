"""`shoal-gateway`: the public API as a process."""

from __future__ import annotations

import asyncio
import sys

import structlog
import uvloop

from shoal.config import ConfigError, describe, load_or_exit
from shoal.gateway.config import Config
from shoal.gateway.process import Gateway
from shoal.rpc.server import serve_until_stopped, stop_signal
from shoal.telemetry import serve_metrics, setup_logs, setup_traces


def main() -> None:
    """Runs until SIGTERM or SIGINT, drains, exits 0; exits 2 when the settings are wrong, 1 when a port is taken."""
    config = load_or_exit(Config, program="shoal-gateway")
    setup_logs("gateway", level=config.log_level, log_format=config.log_format)
    structlog.get_logger("shoal.gateway").info("configuration", **describe(config))
    stop_traces = setup_traces("gateway", config.otlp_endpoint)
    try:
        metrics_port, stop_metrics = serve_metrics(config.host, config.metrics_port)
        structlog.get_logger("shoal.gateway").info("metrics", port=metrics_port)
        uvloop.run(_serve(config))
        stop_metrics()
    except (ConfigError, OSError) as error:
        print(f"shoal-gateway: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    finally:
        stop_traces()


async def _serve(config: Config) -> None:
    stop = stop_signal()
    async with Gateway(config) as gateway:
        structlog.get_logger("shoal.gateway").info("listening", grpc=gateway.grpc.port, http=gateway.http.port)
        ready = asyncio.create_task(gateway.until_ready())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((ready, stopped), return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            health = asyncio.create_task(gateway.follow_health())
            await serve_until_stopped(gateway.grpc, stop, gateway.options, drain=gateway.drain)
            health.cancel()
        ready.cancel()
        stopped.cancel()


if __name__ == "__main__":
    main()
