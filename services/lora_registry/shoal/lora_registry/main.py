"""The `shoal-lora-registry` command."""

from __future__ import annotations

import sys

import structlog
import uvloop
from prometheus_client import REGISTRY

from shoal.api.lora_registry.v1 import lora_registry_pb2, lora_registry_pb2_grpc
from shoal.config import describe, load_or_exit
from shoal.lora_registry.config import LoraRegistryConfig
from shoal.lora_registry.metrics import RegistryCollector
from shoal.lora_registry.process import open_registry, open_store, wait_for_adapters
from shoal.lora_registry.store import AdapterStore
from shoal.rpc.server import Registration, ServerOptions, serve_until_stopped, start_server, stop_signal
from shoal.telemetry import serve_metrics, setup_logs, setup_traces

_NAME = lora_registry_pb2.DESCRIPTOR.services_by_name["LoraRegistryService"].full_name
_MAX_MESSAGE_BYTES = 4 << 20


def main() -> None:
    """Runs the registry until SIGTERM. Exits 2 for wrong settings, 1 when a port or the folder cannot be had."""
    config = load_or_exit(LoraRegistryConfig, program="shoal-lora-registry")
    setup_logs("lora_registry", level=config.log_level)
    log = structlog.get_logger("shoal.lora_registry")
    log.info("starting", **describe(config))
    stop_traces = setup_traces("shoal-lora-registry", config.otlp_endpoint)
    try:
        store = open_store(config)
        try:
            uvloop.run(_serve(config, store))
        finally:
            store.close()
    except OSError as error:
        log.error("cannot serve", error=str(error))
        sys.exit(1)
    finally:
        stop_traces()


async def _serve(config: LoraRegistryConfig, store: AdapterStore) -> None:
    stop = stop_signal()
    options = ServerOptions(config.host, config.port, config.drain_timeout_s, _MAX_MESSAGE_BYTES)
    metrics_port, stop_metrics = serve_metrics(config.host, config.metrics_port)
    structlog.get_logger("shoal.lora_registry").info("metrics", address=f"{config.host}:{metrics_port}")
    try:
        async with open_registry(config, store) as registry:
            collector = RegistryCollector(store, registry.follower)
            REGISTRY.register(collector)
            try:
                add = lora_registry_pb2_grpc.add_LoraRegistryServiceServicer_to_server
                server = await start_server(options, [Registration(add, registry.servicer, _NAME)])
                await wait_for_adapters(registry, config.start_wait_s, stop)

                async def drain(timeout_s: float) -> None:
                    registry.events.close()

                await serve_until_stopped(server, stop, options, drain=drain)
            finally:
                REGISTRY.unregister(collector)
    finally:
        stop_metrics()


if __name__ == "__main__":
    main()
