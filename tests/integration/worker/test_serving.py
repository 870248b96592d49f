from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest_asyncio

from shoal.api.generation.v1 import generation_pb2
from shoal.api.worker.v1 import worker_pb2
from support.worker_process import WorkerProcess, start_worker, worker_stub

if TYPE_CHECKING:
    from shoal.api.worker.v1.worker_pb2_grpc import ModelWorkerServiceAsyncStub as Stub


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[WorkerProcess]:
    async with start_worker("--device=simulated", "--max-num-seqs=8", "--simulated-step-ms=1") as worker:
        yield worker


@pytest_asyncio.fixture
async def stub(worker: WorkerProcess) -> AsyncIterator[Stub]:
    async with worker_stub(worker) as stub:
        yield stub


async def test_tokens_come_in_order_with_usage_first_and_last(worker: WorkerProcess, stub: Stub) -> None:
    request = worker_pb2.GenerateRequest(
        token_ids=range(40), sampling=generation_pb2.SamplingParams(max_tokens=12, seed=7, ignore_eos=True)
    )
    messages = [message async for message in stub.Generate(request, timeout=10)]
    print(messages)
