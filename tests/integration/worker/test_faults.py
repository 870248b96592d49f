"""What a worker does when something dies, vanishes, fills up or is told to go."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.api.worker.v1 import worker_pb2
from shoal.rpc.errors import ResourceExhausted, ShoalError
from shoal.rpc.status import from_rpc_error
from support.eventually import eventually
from support.worker_calls import collect, generate_request
from support.worker_process import launch_worker, start_worker, worker_stub

SLOW = ("--device=simulated", "--simulated-step-ms=5", "--max-num-seqs=4", "--max-num-batched-tokens=64")

END = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs


def nothing(value: float) -> bool:
    return value == 0


def something(value: float) -> bool:
    return value > 0


async def first_message(call: Any) -> None:
    assert await call.read() is not END


async def error_of(awaitable: Awaitable[Any]) -> tuple[grpc.StatusCode, ShoalError]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await awaitable
    return raised.value.code(), from_rpc_error(raised.value)


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_dead_engine_fails_every_stream_and_ends_the_worker() -> None:
    async with start_worker(*SLOW) as worker, worker_stub(worker) as stub:
        calls = [stub.Generate(generate_request([i], max_tokens=5000), timeout=30) for i in range(3)]
        for call in calls:
            await first_message(call)
        os.kill(worker.engine_pid(), signal.SIGKILL)
        for call in calls:
            code, error = await error_of(collect_rest(call))
            assert code == grpc.StatusCode.UNAVAILABLE
            assert "engine died" in error.message
        assert await worker.wait_ended() == 1


async def collect_rest(call: Any) -> None:
    while await call.read() is not END:
        pass


async def test_the_engine_dies_with_its_front() -> None:
    async with start_worker(*SLOW) as worker, worker_stub(worker) as stub:
        await first_message(stub.Generate(generate_request([1], max_tokens=5000), timeout=30))
        engine_pid = worker.engine_pid()
        worker.signal(signal.SIGKILL)
        await eventually(lambda: not exists(engine_pid), "the engine is gone")


async def test_signals_to_the_group_leave_the_engine_working() -> None:
    async with start_worker(*SLOW) as worker, worker_stub(worker) as stub:
        call = stub.Generate(generate_request([1], max_tokens=60), timeout=30)
        await first_message(call)
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.engine_pid(), signum)
        await collect_rest(call)
        assert await call.code() == grpc.StatusCode.OK


async def test_a_client_that_vanishes_frees_its_blocks() -> None:
    async with start_worker(*SLOW) as worker:
        async with worker_stub(worker) as vanishing:
            for call in [vanishing.Generate(generate_request([i], n=2, max_tokens=5000)) for i in range(2)]:
                await first_message(call)
            assert await worker.wait_metric("num_requests_running", something) == 4
        await worker.wait_metric("kv_cache_used_blocks", nothing)
        await worker.wait_metric("num_requests_running", nothing)


async def test_a_cancelled_call_leaves_the_queue_too() -> None:
    async with start_worker(*SLOW, "--max-num-seqs=1") as worker, worker_stub(worker) as stub:
        running = stub.Generate(generate_request([1], max_tokens=5000))
        await first_message(running)
        waiting = stub.Generate(generate_request([2]))
        await worker.wait_metric("num_requests_waiting", something)
        waiting.cancel()
        await worker.wait_metric("num_requests_waiting", nothing)
        assert worker.metric("num_requests_running") == 1
        running.cancel()
        await worker.wait_metric("kv_cache_used_blocks", nothing)


async def test_deadlines_end_requests_in_the_queue_and_in_midstream() -> None:
    async with start_worker(*SLOW, "--max-num-seqs=1") as worker, worker_stub(worker) as stub:
        running = stub.Generate(generate_request([1], max_tokens=5000), timeout=1.0)
        await first_message(running)
        code, _ = await error_of(collect(stub.Generate(generate_request([2]), timeout=0.2)))
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        code, _ = await error_of(collect_rest(running))
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        await worker.wait_metric("num_requests_waiting", nothing)
        await worker.wait_metric("kv_cache_used_blocks", nothing)


async def test_a_full_queue_refuses_before_any_message_and_says_when_to_come_back() -> None:
    async with (
        start_worker(*SLOW, "--max-num-seqs=1", "--max-queued-requests=1") as worker,
        worker_stub(worker) as stub,
    ):
        running = stub.Generate(generate_request([1], max_tokens=5000))
        await first_message(running)
        waiting = stub.Generate(generate_request([2]))
        await worker.wait_metric("num_requests_waiting", something)
        code, error = await error_of(collect(stub.Generate(generate_request([3]), timeout=10)))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert isinstance(error, ResourceExhausted)
        assert error.retry_after_s is not None
        assert error.retry_after_s > 0
        running.cancel()
        completions, _ = await collect(waiting)
        assert len(completions[0].token_ids) == 8


async def test_too_many_queued_tokens_are_refused_by_the_scheduler() -> None:
    async with (
        start_worker(*SLOW, "--max-num-seqs=1", "--max-queued-tokens=100") as worker,
        worker_stub(worker) as stub,
    ):
        running = stub.Generate(generate_request([1], max_tokens=5000))
        await first_message(running)
        waiting = stub.Generate(generate_request(range(90)))
        await worker.wait_metric("num_requests_waiting", something)
        code, error = await error_of(collect(stub.Generate(generate_request(range(20)), timeout=10)))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "90 tokens are waiting" in error.message
        for call in (running, waiting):
            call.cancel()


async def test_sigterm_under_load_finishes_every_stream_and_takes_no_new_one() -> None:
    async with start_worker(*SLOW) as worker, worker_stub(worker) as stub:
        calls = [stub.Generate(generate_request([i], max_tokens=100), timeout=30) for i in range(6)]  # two wait
        subscription = stub.SubscribeKvEvents(worker_pb2.SubscribeKvEventsRequest())
        await subscription.read()
        results = [asyncio.create_task(collect(call)) for call in calls]
        await worker.wait_metric("num_requests_waiting", something)
        async with grpc.aio.insecure_channel(worker.address) as channel:
            watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            worker.signal(signal.SIGTERM)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        code, _ = await error_of(collect(stub.Generate(generate_request([9]), timeout=10)))
        assert code == grpc.StatusCode.UNAVAILABLE
        for result in results:
            completions, _ = await result
            assert len(completions[0].token_ids) == 100
        assert await worker.wait_ended() == 0


async def test_streams_that_outlast_the_drain_are_handed_to_other_workers() -> None:
    async with start_worker(*SLOW, "--drain-timeout-s=0.3") as worker, worker_stub(worker) as stub:
        call = stub.Generate(generate_request([1], max_tokens=5000))
        await first_message(call)
        worker.signal(signal.SIGTERM)
        code, error = await error_of(collect_rest(call))
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "resume" in error.message
        assert await worker.wait_ended() == 0


async def test_drain_counts_what_it_had_to_cancel() -> None:
    async with start_worker(*SLOW) as worker, worker_stub(worker) as stub:
        calls = [stub.Generate(generate_request([i], max_tokens=5000)) for i in range(2)]
        for call in calls:
            await first_message(call)
        answer = await stub.Drain(worker_pb2.DrainRequest(timeout_ms=100), timeout=10)
        assert answer.cancelled_requests == 2
        for call in calls:
            code, _ = await error_of(collect_rest(call))
            assert code == grpc.StatusCode.UNAVAILABLE
        code, error = await error_of(collect(stub.Generate(generate_request([9]), timeout=10)))
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "draining" in error.message
        assert (await stub.Drain(worker_pb2.DrainRequest(), timeout=10)).cancelled_requests == 0


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 8192)]
    async with (
        start_worker("--device=simulated", "--client-stall-timeout-s=0.5") as worker,
        worker_stub(worker, options=narrow) as stub,
    ):
        call = stub.Generate(generate_request([1], max_tokens=60_000, logprobs=1))
        await first_message(call)  # and none of the others: they fill the transport's window, then the worker waits
        await worker.wait_metric("num_requests_running", something)
        await worker.wait_metric("num_requests_running", nothing)
        assert worker.metric("generation_tokens_total") < 60_000
        code, error = await error_of(collect_rest(call))
        assert code == grpc.StatusCode.CANCELLED
        assert "client_stall_timeout_s" in error.message


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--device=simulated", "--max-num-seqs=64", "--max-num-batched-tokens=32"), "below max_num_seqs"),
        (("--device=simulated", "--num-blocks=4", "--max-model-len=100"), "hold only 64 tokens"),
        (("--device=cpu",), "model is required"),
        (("--device=cpu", "--model=/nonexistent/model"), "/nonexistent/model"),
    ],
)
async def test_a_worker_that_cannot_serve_says_why_and_ends(flags: tuple[str, ...], problem: str) -> None:
    worker = await launch_worker(*flags)
    assert await worker.wait_ended() == 1
    assert problem in worker.logged("cannot serve")["reason"]
