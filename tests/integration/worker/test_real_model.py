"""The worker with a real model, over the wire."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from shoal.api.worker.v1 import worker_pb2
from support.model import smollm2_path
from support.worker_calls import collect, generate_request
from support.worker_process import WorkerProcess, launch_worker, start_worker, worker_stub

if TYPE_CHECKING:
    from shoal.api.worker.v1.worker_pb2_grpc import ModelWorkerServiceAsyncStub as Stub

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROMPT = list(range(1000, 1100))
DTYPE = ("--dtype=float32",)  # in bfloat16, 8 tokens computed at once differ enough from 8 steps to change a draw


def flags() -> tuple[str, ...]:
    return (f"--model={smollm2_path()}", "--threads=1", "--kv-cache-memory-bytes=64000000", "--max-num-seqs=8", *DTYPE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[WorkerProcess]:
    async with start_worker(*flags()) as worker:
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(worker: WorkerProcess) -> AsyncIterator[Stub]:
    async with worker_stub(worker) as stub:
        yield stub


async def test_loading_is_shown_and_the_model_described(worker: WorkerProcess, stub: Stub) -> None:
    stages = [line["stage"] for line in worker.logs if line["event"] == "loading"]
    assert set(stages) == {"fetch", "weights", "warm-up"}
    info = await stub.GetInfo(worker_pb2.GetInfoRequest(), timeout=5)
    assert (info.device, info.dtype, info.vocab_size) == ("cpu", "float32", 49152)
    assert len(info.model_digest) == 64
    assert list(info.eos_token_ids) == [2]
    assert info.num_blocks * info.block_size >= info.max_model_len


async def test_a_resumed_request_is_hit_in_the_cache_and_goes_on_exactly(stub: Stub) -> None:
    completions, messages = await collect(stub.Generate(generate_request(PROMPT, max_tokens=48), timeout=60))
    whole = completions[0].token_ids
    assert messages[0].usage.cached_tokens == 0
    resumed = generate_request(PROMPT, max_tokens=48, resume=whole[:20])
    completions, messages = await collect(stub.Generate(resumed, timeout=60), num_resumed=20)
    assert completions[0].token_ids == whole[20:]
    assert messages[0].usage.cached_tokens == len(PROMPT)  # 112 tokens of prompt and output were found


async def test_n_completions_with_logprobs_of_prompt_and_output(stub: Stub) -> None:
    request = generate_request(PROMPT[:20], n=3, logprobs=2, prompt_logprobs=2, max_tokens=6)
    completions, messages = await collect(stub.Generate(request, timeout=60))
    assert len({tuple(completion.token_ids) for completion in completions.values()}) > 1
    for completion in completions.values():
        assert [entry.token.token_id for entry in completion.logprobs] == completion.token_ids
        assert all(len(entry.top) == 2 and entry.token.logprob <= 0 for entry in completion.logprobs)
    with_prompt = [message for message in messages if message.prompt_logprobs]
    assert [len(message.prompt_logprobs) for message in with_prompt] == [20]


async def test_sigterm_while_loading_ends_the_worker_at_once() -> None:
    worker = await launch_worker(*flags())
    await worker.wait_logged("loading")
    worker.signal(signal.SIGTERM)
    assert await worker.wait_ended(timeout_s=10) == 0
    assert not any(line["event"] == "serving" for line in worker.logs)
