"""Two workers of SmolLM2 and a KV store, as processes: what one computes the other loads, and no store is a must."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.api.worker.v1 import worker_pb2
from support.eventually import eventually
from support.kv_store_process import launch_kv_store, start_kv_store
from support.logged_process import LoggedProcess
from support.model import smollm2_path
from support.worker_calls import collect, generate_request
from support.worker_process import WorkerProcess, start_worker, worker_stub

STORE = ("--memory-bytes=134217728", "--chunk-bytes=33554432", "--port=0", "--metrics-port=0")
PROMPT = [1000 + 7 * number % 20_000 for number in range(200)]
NUM_CACHED = 192


@asynccontextmanager
async def worker_with(folder: Path, *flags: str, fault: str = "") -> AsyncIterator[WorkerProcess]:
    """A worker that uses the store in `folder`, if there is one."""
    sizes = ("--num-blocks=64", "--port=0", "--metrics-port=0", "--threads=1")
    store = (f"--kv-store-socket={folder / 'kv.sock'}", "--kv-store-lookup-wait-ms=250")
    async with start_worker(f"--model={smollm2_path()}", *sizes, *store, *flags, fault=fault) as worker:
        yield worker


async def ask(worker: WorkerProcess, prompt: list[int] = PROMPT, **sampling: Any) -> tuple[list[int], int]:
    """Eight greedy tokens, and how many of the prompt were cached."""
    fields: dict[str, Any] = {"temperature": 0, **sampling}
    request = generate_request(prompt, **fields)
    async with worker_stub(worker) as stub:
        completions, messages = await collect(stub.Generate(request))
    return completions[0].token_ids, messages[-1].usage.cached_tokens


async def is_up(worker: WorkerProcess) -> bool:
    """What the worker's health says of the store."""
    async with grpc.aio.insecure_channel(worker.address) as channel:
        request = health_pb2.HealthCheckRequest(service="shoal.model_worker.kv_store")
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def wait_stored(worker: WorkerProcess, num_blocks: int = 12) -> None:
    await worker.wait_metric("kv_store_stored_blocks_total", lambda value: value >= num_blocks)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
async def test_one_worker_loads_what_another_computed(tmp_path: Path, dtype: str) -> None:
    async with start_kv_store(tmp_path, *STORE) as store:
        address = store.logged("serving")["address"]
        flags = (f"--dtype={dtype}", f"--kv-store-address={address}")
        async with worker_with(tmp_path, *flags) as first, worker_with(tmp_path, *flags) as second:
            computed = await ask(first)
            await wait_stored(first)
            assert computed[1] == 0
            # Exactly as if the blocks had stayed where they were.
            assert await ask(second) == await ask(first)
            if dtype == "float32":
                assert await ask(second) == (computed[0], NUM_CACHED)
            assert second.metric('kv_store_loaded_blocks_total{tier="memory"}') == 12
            assert await is_up(second)
            await expect_event(second, worker_pb2.TIER_MEMORY, 12)


async def expect_event(worker: WorkerProcess, tier: worker_pb2.Tier.ValueType, num_keys: int) -> None:
    """A subscriber hears of so many blocks in a tier."""
    found = 0
    async with worker_stub(worker) as stub, asyncio.timeout(10):
        async for response in stub.SubscribeKvEvents(worker_pb2.SubscribeKvEventsRequest()):
            for part in (response.snapshot, response.stored):
                found += len(part.keys) if part.tier == tier else 0
            if found >= num_keys:
                return


async def test_a_worker_goes_on_when_its_store_hangs_and_dies_and_uses_it_when_it_is_back(tmp_path: Path) -> None:
    async with worker_with(tmp_path, "--dtype=float32") as worker:
        async with start_kv_store(tmp_path, *STORE) as store:
            expected = (await ask(worker))[0]
            await wait_stored(worker)
            usual_s = await time_computing(worker, 77)
            store.signal(signal.SIGSTOP)
            hung_s = [await time_computing(worker, number) for number in range(3)]
            # What waits may cost in all, and twice the usual, because others use these cores too.
            assert sum(hung_s) < 2 * len(hung_s) * usual_s + 0.25 + 1.0
            await worker.wait_metric("kv_store_up", lambda value: value == 0)
            assert not await is_up(worker)
            async with worker_stub(worker) as stub:
                info = await stub.GetInfo(worker_pb2.GetInfoRequest())
            assert "answer" in info.kv_store_problem
            store.signal(signal.SIGCONT)
        assert (await ask(worker))[0] == expected
        async with start_kv_store(tmp_path, *STORE):
            before = worker.metric("kv_store_stored_blocks_total")
            async with asyncio.timeout(20):
                number = 100
                while worker.metric("kv_store_stored_blocks_total") == before:
                    number += 1
                    await ask(worker, [number, *PROMPT[:40]], max_tokens=1)
            assert await is_up(worker)
        assert (await ask(worker))[0] == expected


@pytest.mark.parametrize(
    ("when", "num_cached"), [pytest.param("before", 0, marks=pytest.mark.exhaustive), ("amid", 96)]
)
async def test_a_request_whose_store_is_killed_amid_its_load_is_answered_in_time(
    tmp_path: Path, when: str, num_cached: int
) -> None:
    prompt = PROMPT[:100]
    sizes = ("--num-blocks=16", "--max-model-len=128", "--dtype=float32", "--kv-store-wait-budget-ms=5000")
    async with (
        start_killed_kv_store(tmp_path) as store,
        worker_with(tmp_path, *sizes, fault=f"{when} {tmp_path}") as worker,
    ):
        expected, _ = await ask(worker, prompt)
        await wait_stored(worker, 6)
        usual_s = max([await time_computing(worker, number, 100) for number in range(3)])  # and its blocks are gone
        asked = asyncio.create_task(ask(worker, prompt))
        await eventually((tmp_path / "paused").exists, "a load that has begun")
        store.signal(signal.SIGKILL)
        await store.wait_ended()
        start_s = time.monotonic()
        (tmp_path / "go").touch()
        assert await asked == (expected, num_cached)  # what is mapped stays, whoever dies
        # A dead store is noticed at once; then it takes as long as computing, twice that as others use these cores too.
        assert time.monotonic() - start_s < 2 * usual_s + 1.0
        if num_cached:
            assert worker.metric('kv_store_loaded_blocks_total{tier="memory"}') == num_cached // 16
        else:
            assert worker.metric('kv_store_unused_total{reason="store"}') == 1
        assert await time_computing(worker, 9, 100) < 2 * usual_s + 1.0
        await worker.wait_metric("kv_store_up", lambda value: value == 0)


@asynccontextmanager
async def start_killed_kv_store(folder: Path) -> AsyncIterator[LoggedProcess]:
    """A store that does not end by itself."""
    async with await launch_kv_store(folder, *STORE) as store:
        await store.wait_logged("serving")
        yield store


async def time_computing(worker: WorkerProcess, number: int, num_tokens: int = len(PROMPT)) -> float:
    """Seconds for a prompt that nobody has computed."""
    start_s = time.monotonic()
    _, cached = await ask(worker, [number, *PROMPT[1:num_tokens]])
    assert cached == 0
    return time.monotonic() - start_s
