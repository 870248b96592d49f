"""The front process: puts engine client, servicer, metrics and server together, and takes them down in order."""

from __future__ import annotations

import asyncio
import secrets

import structlog
from prometheus_client import REGISTRY

from shoal.api.worker.v1 import worker_pb2, worker_pb2_grpc
from shoal.model_worker.coalescing import Coalescer
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_child import ENGINE_MODULE
from shoal.model_worker.engine_client import EngineClient, EngineFailed
from shoal.model_worker.kv_events import KvEventHub
from shoal.model_worker.kv_store_watch import KvStoreWatch
from shoal.model_worker.metrics import WorkerMetrics
from shoal.model_worker.orca import OrcaService
from shoal.model_worker.servicer import ModelWorkerServicer
from shoal.model_worker.start_log import StartLog
from shoal.model_worker.tenants import operator_token
from shoal.rpc.server import Registration, ServerOptions, serve_until_stopped, start_server, stop_signal
from shoal.telemetry import serve_metrics

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["ModelWorkerService"].full_name
_log = structlog.get_logger("shoal.model_worker")


async def run_front(config: WorkerConfig, *, engine_module: str = ENGINE_MODULE) -> int:
    """Loads, serves until SIGTERM, SIGINT or the engine's death, drains. Returns the exit status, 0 or 1.

    config: with the device's defaults filled in. engine_module: what runs as the engine process.
    """
    stop = stop_signal()
    start_log = StartLog()
    metrics = WorkerMetrics()
    REGISTRY.register(metrics)
    metrics_port, stop_metrics = serve_metrics(config.host, config.metrics_port)
    _log.info("metrics", address=f"{config.host}:{metrics_port}")
    # 63 random bits: no two runs share an epoch, and it stays an exact integer for every client.
    kv_events = KvEventHub(
        epoch=secrets.randbits(63) | 1, buffer=config.kv_event_buffer, max_store_keys=config.kv_store_event_keys
    )
    coalescer = Coalescer(
        above_streams=config.coalesce_above_streams,
        max_tokens=config.coalesce_max_tokens,
        max_delay_s=config.coalesce_max_delay_ms / 1e3,
    )
    engine = await EngineClient.start(
        config, module=engine_module, coalescer=coalescer, kv_events=kv_events, metrics=metrics
    )
    try:
        return await _serve(config, engine, kv_events, metrics, stop, start_log)
    except (EngineFailed, OSError) as error:
        _log.error("cannot serve", reason=str(error))
        return 1
    finally:
        await engine.stop()
        stop_metrics()
        REGISTRY.unregister(metrics)


async def _serve(
    config: WorkerConfig,
    engine: EngineClient,
    kv_events: KvEventHub,
    metrics: WorkerMetrics,
    stop: asyncio.Event,
    start_log: StartLog,
) -> int:
    servicer = ModelWorkerServicer(config, engine, kv_events, metrics)
    orca = OrcaService(metrics, max_num_seqs=config.max_num_seqs)
    options = ServerOptions(host=config.host, port=config.port, drain_timeout_s=config.drain_timeout_s)
    metrics.kv_store.is_configured = bool(config.kv_store_socket)
    registration = Registration(worker_pb2_grpc.add_ModelWorkerServiceServicer_to_server, servicer, SERVICE)
    server = await start_server(options, [registration], [orca.handler()])
    servicer.on_drain(lambda: server.set_serving(False))
    loaded = False
    try:
        loaded = await _load(config, engine, stop, start_log)
    finally:
        if not loaded:
            await server.stop(0)
    if not loaded:
        return 0

    async def drain(timeout_s: float) -> None:
        await servicer.drain(timeout_s)
        kv_events.close()
        orca.close()

    watches = [
        asyncio.create_task(_stop_when_dead(engine, stop), name="engine death watch"),
        asyncio.create_task(servicer.watch_clients(), name="client stall watch"),
    ]
    if config.kv_store_socket:
        watches.append(asyncio.create_task(metrics.kv_store.tell(server.set_part), name="KV store health"))
    if config.kv_store_socket and config.kv_store_address and config.kv_store_event_keys:
        token = operator_token(config.kv_store_tokens_file)
        if config.kv_store_tokens_file and not token:
            _log.info("routers do not hear what the KV store holds", reason='its tokens have none of "*"')
        else:
            followed = KvStoreWatch(config.kv_store_address, kv_events, token=token)
            watches.append(asyncio.create_task(followed.run(), name="KV store events"))
    await serve_until_stopped(server, stop, options, drain=drain)
    for watch in watches:
        watch.cancel()
    return 1 if engine.died.is_set() else 0


async def _load(config: WorkerConfig, engine: EngineClient, stop: asyncio.Event, start_log: StartLog) -> bool:
    """Waits for the engine; False when told to stop before it was ready."""
    stopping = asyncio.create_task(stop.wait(), name="stop while loading")
    loading = asyncio.create_task(engine.load(config.load_timeout_s, start_log.on_progress), name="load")
    await asyncio.wait({stopping, loading}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        loading.cancel()
        await asyncio.wait({loading})
        return False
    stopping.cancel()
    info = loading.result()
    _log.info(
        "loaded",
        model=config.model_name,
        digest=info.model_digest,
        device=info.device,
        dtype=info.dtype,
        num_blocks=info.num_blocks,
        block_size=info.block_size,
        max_num_seqs=info.max_num_seqs,
        max_model_len=info.max_model_len,
        ready_in=start_log.finish(),
    )
    return True


async def _stop_when_dead(engine: EngineClient, stop: asyncio.Event) -> None:
    await engine.died.wait()
    _log.error("the engine is gone; the worker ends so that its supervisor can restart it")
    stop.set()
