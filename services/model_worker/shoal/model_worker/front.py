"""The front process: puts engine client, servicer, metrics and server together, and takes them down in order."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import structlog
from prometheus_client import REGISTRY

from shoal.api.worker.v1 import worker_pb2, worker_pb2_grpc
from shoal.model_worker.coalescing import Coalescer
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_client import EngineClient, EngineFailed
from shoal.model_worker.kv_events import KvEventHub
from shoal.model_worker.metrics import WorkerMetrics
from shoal.model_worker.orca import OrcaService
from shoal.model_worker.servicer import ModelWorkerServicer
from shoal.rpc.server import Registration, ServerOptions, serve_until_stopped, start_server, stop_signal
from shoal.telemetry import serve_metrics

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["ModelWorkerService"].full_name
_log = structlog.get_logger("shoal.model_worker")


async def run_front(config: WorkerConfig) -> int:
    """Loads, serves until SIGTERM, SIGINT or the engine's death, drains. Returns the exit status, 0 or 1."""
    stop = stop_signal()
    metrics = WorkerMetrics()
    REGISTRY.register(metrics)
    metrics_port, stop_metrics = serve_metrics(config.host, config.metrics_port)
    _log.info("metrics", address=f"{config.host}:{metrics_port}")
    # 63 random bits: no two runs share an epoch, and it stays an exact integer for every client.
    kv_events = KvEventHub(epoch=secrets.randbits(63) | 1, buffer=config.kv_event_buffer)
    coalescer = Coalescer(
        above_streams=config.coalesce_above_streams,
        max_tokens=config.coalesce_max_tokens,
        max_delay_s=config.coalesce_max_delay_ms / 1e3,
    )
    engine = await EngineClient.start(config, coalescer=coalescer, kv_events=kv_events, metrics=metrics)
    try:
        return await _serve(config, engine, kv_events, metrics, stop)
    except (EngineFailed, OSError) as error:
        _log.error("cannot serve", reason=str(error))
        return 1
    finally:
        await engine.stop()
        stop_metrics()
        REGISTRY.unregister(metrics)


async def _serve(
    config: WorkerConfig, engine: EngineClient, kv_events: KvEventHub, metrics: WorkerMetrics, stop: asyncio.Event
) -> int:
    servicer = ModelWorkerServicer(config, engine, kv_events, metrics)
    orca = OrcaService(metrics, max_num_seqs=config.max_num_seqs)
    options = ServerOptions(host=config.host, port=config.port, drain_timeout_s=config.drain_timeout_s)
    registration = Registration(worker_pb2_grpc.add_ModelWorkerServiceServicer_to_server, servicer, SERVICE)
    server = await start_server(options, [registration], [orca.handler()])
    servicer.on_drain(lambda: server.set_serving(False))
    loaded = False
    try:
        loaded = await _load(config, engine, stop)
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
    await serve_until_stopped(server, stop, options, drain=drain)
    for watch in watches:
        watch.cancel()
    return 1 if engine.died.is_set() else 0


async def _load(config: WorkerConfig, engine: EngineClient, stop: asyncio.Event) -> bool:
    """Waits for the engine; False when told to stop before it was ready."""
    stopping = asyncio.create_task(stop.wait(), name="stop while loading")
    loading = asyncio.create_task(engine.load(config.load_timeout_s, _log_progress()), name="load")
    await asyncio.wait({stopping, loading}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        loading.cancel()
        await asyncio.wait({loading})
        return False
    stopping.cancel()
    info = loading.result()
    _log.info("loaded", model=config.model_name, digest=info.model_digest, num_blocks=info.num_blocks)
    return True


def _log_progress() -> Callable[[str, float], None]:
    """Logs a stage when it begins and at every tenth of it."""
    last: tuple[str, int] = ("", -1)

    def log(stage: str, fraction: float) -> None:
        nonlocal last
        if last != (step := (stage, int(fraction * 10))):
            last = step
            _log.info("loading", stage=stage, percent=round(fraction * 100))

    return log


async def _stop_when_dead(engine: EngineClient, stop: asyncio.Event) -> None:
    await engine.died.wait()
    _log.error("the engine is gone; the worker ends so that its supervisor can restart it")
    stop.set()
