"""An engine that fails or hangs: requests end so that they can be resumed, and the worker ends, to be restarted."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from shoal.model_worker.coalescing import Coalescer
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_client import EngineClient, EngineFailed
from shoal.model_worker.kv_events import KvEventHub
from shoal.model_worker.metrics import WorkerMetrics
from shoal.rpc.errors import Unavailable
from shoal.rpc.status import from_rpc_error
from support.engine_requests import exactly, make_request
from support.worker_calls import collect, generate_request
from support.worker_process import WorkerProcess, launch_worker, start_worker, worker_stub

SIMULATED = ("--device=simulated", "--simulated-step-ms=5")
END = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs


async def read_to_end(call: Any) -> None:
    while await call.read() is not END:
        pass


async def assert_resumable(call: Any, words: str) -> None:
    """The call ends with UNAVAILABLE, says when to come back, and why in `words`."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await read_to_end(call)
    error = from_rpc_error(raised.value)
    assert isinstance(error, Unavailable)
    assert error.retry_after_s == 1.0
    assert words in error.message
    assert "resumed on another worker" in error.message


@asynccontextmanager
async def watching_health(worker: WorkerProcess) -> AsyncIterator[None]:
    """Serving at first, and no more at the end."""
    async with grpc.aio.insecure_channel(worker.address) as channel:
        watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        yield
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize(
    ("fault", "reason", "message", "words"),
    [
        ("run_out_of_memory", "out_of_memory", "max_num_batched_tokens (512)", "ran out of memory"),
        ("lose_device", "device", "illegal memory access was encountered (cudaErrorIllegalAddress)", "lost its device"),
        ("fail_inside", "internal", "KeyError: 'slot 7'", "engine died"),
    ],
)
async def test_an_error_in_a_step_ends_the_worker_although_exit_handlers_hang(
    fault: str, reason: str, message: str, words: str
) -> None:
    async with start_worker(*SIMULATED, fault=fault) as worker, worker_stub(worker) as stub:
        engine = psutil.Process(worker.engine_pid())
        async with watching_health(worker):
            calls = [stub.Generate(generate_request([i], max_tokens=5000), timeout=60) for i in range(2)]
            for call in calls:
                await assert_resumable(call, words)
        assert await worker.wait_ended() == 1
        assert not engine.is_running()
        ended = worker.logged("the engine ended")
        assert ended["reason"] == reason
        assert message in ended["message"]
        assert fault in worker.logged("the engine failed")["traceback"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("early run_out_of_memory", "out of memory: CUDA out of memory"),
        ("early lose_device", "the GPU or a kernel on it failed: an illegal memory access"),
    ],
)
async def test_an_error_while_loading_is_told_in_the_same_words(fault: str, message: str) -> None:
    worker = await launch_worker(*SIMULATED, fault=fault)
    assert await worker.wait_ended() == 1
    assert message in worker.logged("cannot serve")["reason"]


async def test_a_step_that_never_ends_is_noticed_and_its_place_is_logged() -> None:
    flags = (*SIMULATED, "--engine-stall-timeout-s=0.5")
    async with start_worker(*flags, fault="hang") as worker, worker_stub(worker) as stub:
        call = stub.Generate(generate_request([1], max_tokens=5000), timeout=60)
        await assert_resumable(call, "made no progress")
        assert await worker.wait_ended() == 1
        assert worker.logged("the engine ended")["reason"] == "stalled"
        assert any("in hang" in line["event"] for line in worker.logs), worker.logs


async def test_a_stopped_engine_is_killed_and_every_request_fails_over() -> None:
    async with start_worker(*SIMULATED, "--engine-stall-timeout-s=0.5") as worker, worker_stub(worker) as stub:
        engine = psutil.Process(worker.engine_pid())
        async with watching_health(worker):
            calls = [stub.Generate(generate_request([i], max_tokens=5000), timeout=60) for i in range(3)]
            for call in calls:
                assert await call.read() is not END
            engine.send_signal(signal.SIGSTOP)
            for call in calls:
                await assert_resumable(call, "made no progress")
        assert await worker.wait_ended() == 1
        assert not engine.is_running()
        assert "engine_stall_timeout_s = 0.5 s" in worker.logged("the engine ended")["message"]
        assert worker.logged("the engine's process ended")["end"] == "killed by SIGKILL"


async def test_clients_that_give_up_do_not_hide_a_stall() -> None:
    async with start_worker(*SIMULATED, "--engine-stall-timeout-s=1") as worker, worker_stub(worker) as stub:
        os.kill(worker.engine_pid(), signal.SIGSTOP)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await collect(stub.Generate(generate_request([1]), timeout=0.2))
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert await worker.wait_ended() == 1
        assert worker.logged("the engine ended")["reason"] == "stalled"


async def test_slow_steps_are_no_stall() -> None:
    flags = ("--device=simulated", "--simulated-step-ms=300", "--engine-stall-timeout-s=0.9")
    async with start_worker(*flags) as worker, worker_stub(worker) as stub:
        for _ in range(2):
            completions, _ = await collect(stub.Generate(generate_request([1], max_tokens=5), timeout=60))
            assert len(completions[0].token_ids) == 5
        worker.signal(signal.SIGTERM)
        assert await worker.wait_ended() == 0


async def start_engine(config: WorkerConfig, metrics: WorkerMetrics, module: str) -> EngineClient:
    return await EngineClient.start(
        config.with_device_defaults(),
        coalescer=Coalescer(above_streams=8, max_tokens=8, max_delay_s=0.03),
        kv_events=KvEventHub(epoch=1, buffer=16),
        metrics=metrics,
        module=module,
    )


async def test_failures_are_counted_by_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    metrics, registry = WorkerMetrics(), CollectorRegistry()
    registry.register(metrics)

    def count(reason: str) -> float | None:
        return registry.get_sample_value("shoal_worker_engine_failures_total", {"reason": reason})

    config = WorkerConfig(device="simulated")
    monkeypatch.setenv("FAULT", "lose_device")
    engine = await start_engine(config, metrics, "support.faulty_engine")
    await engine.load(60, lambda stage, fraction: None)
    stream = engine.submit(make_request(0, [1, 2], sampling=exactly(100)))
    await asyncio.wait_for(engine.died.wait(), 60)
    assert engine.failure is not None
    assert stream.failure is not None
    assert stream.failure.reason == "WORKER_FAILED"
    late = engine.submit(make_request(0, [3]))
    assert late.failure == msgspec.structs.replace(stream.failure, reason="UNAVAILABLE")
    await engine.stop()
    assert (count("device"), count("died"), count("out_of_memory")) == (1, 0, 0)
    assert registry.get_sample_value("shoal_worker_request_failure_total", {"reason": "worker_failed"}) == 1

    monkeypatch.setenv("FAULT", "early run_out_of_memory")
    engine = await start_engine(config, metrics, "support.faulty_engine")
    with pytest.raises(EngineFailed, match="out of memory"):
        await engine.load(60, lambda stage, fraction: None)
    await engine.stop()
    assert (count("device"), count("out_of_memory")) == (1, 1)


async def test_an_engine_that_is_told_to_end_has_not_failed() -> None:
    metrics, registry = WorkerMetrics(), CollectorRegistry()
    registry.register(metrics)
    engine = await start_engine(WorkerConfig(device="simulated"), metrics, "shoal.model_worker.engine_process")
    await engine.load(60, lambda stage, fraction: None)
    await engine.stop()
    assert engine.failure is None
    assert registry.get_sample_value("shoal_worker_engine_failures_total", {"reason": "died"}) == 0
