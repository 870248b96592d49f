"""The `shoal-kv-store` command."""

from __future__ import annotations

import sys

import structlog
import uvloop
from prometheus_client import REGISTRY
from prometheus_client.registry import Collector

from shoal.api.kv_store.v1 import kv_store_pb2, kv_store_pb2_grpc
from shoal.config import describe, load_or_exit
from shoal.kv_store.config import KvStoreConfig
from shoal.kv_store.draining import drain_store
from shoal.kv_store.metrics import StoreCollector
from shoal.kv_store.process import SettingsProblem, open_control
from shoal.kv_store.remote.metrics import PeerCollector
from shoal.kv_store.servicer import KvStoreServicer
from shoal.kv_store.store import Store
from shoal.rpc.server import Registration, ServerOptions, serve_until_stopped, start_server, stop_signal
from shoal.telemetry import serve_metrics, setup_logs, setup_traces

_NAME = kv_store_pb2.DESCRIPTOR.services_by_name["KvStoreService"].full_name
_MAX_MESSAGE_BYTES = 4 << 20


def main() -> None:
    """Runs the store until SIGTERM. Exits 2 for wrong settings, 1 when a port, a path or memory cannot be had."""
    config = load_or_exit(KvStoreConfig, program="shoal-kv-store")
    setup_logs("kv_store", level=config.log_level)
    log = structlog.get_logger("shoal.kv_store")
    log.info("starting", **describe(config))
    stop_traces = setup_traces("shoal-kv-store", config.otlp_endpoint)
    try:
        uvloop.run(_serve(config))
    except SettingsProblem as problem:
        log.error("cannot serve", error=str(problem))
        sys.exit(2)
    except OSError as error:
        log.error("cannot serve", error=str(error))
        sys.exit(1)
    finally:
        stop_traces()


async def _serve(config: KvStoreConfig) -> None:
    stop = stop_signal()
    options = ServerOptions(
        config.host,
        config.port,
        config.drain_timeout_s,
        _MAX_MESSAGE_BYTES,
        unix_path=f"{config.socket_path}.grpc",
    )
    metrics_port, stop_metrics = serve_metrics(config.host, config.metrics_port)
    structlog.get_logger("shoal.kv_store").info("metrics", address=f"{config.host}:{metrics_port}")
    try:
        async with open_control(config) as control:
            collectors: list[Collector] = [StoreCollector(control.store)]
            if control.exchange is not None:
                collectors.append(PeerCollector(control.exchange))
            for collector in collectors:
                REGISTRY.register(collector)
            try:
                add = kv_store_pb2_grpc.add_KvStoreServiceServicer_to_server
                servicer = KvStoreServicer(control, config.socket_path)
                server = await start_server(options, [Registration(add, servicer, _NAME)])
                await serve_until_stopped(
                    server, stop, options, drain=lambda timeout_s: _drain(control.store, timeout_s)
                )
            finally:
                for collector in collectors:
                    REGISTRY.unregister(collector)
    finally:
        stop_metrics()


async def _drain(store: Store, timeout_s: float) -> None:
    """Takes at most half of the time for the disk; the rest is for calls that run."""
    if store.disk is not None and timeout_s > 0:
        async for progress in drain_store(store, timeout_s / 2):
            if progress.problem:
                structlog.get_logger("shoal.kv_store").warning("not all is on disk", problem=progress.problem)
    store.events.close()


if __name__ == "__main__":
    main()
