"""A worker on a GPU that runs out of memory, whose kernel fails, or whose kernel never ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
import torch

from support.tiny_models import save_tiny
from support.worker_calls import collect, generate_request
from support.worker_process import WorkerProcess, launch_worker, worker_stub

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

START_TIMEOUT_S = 180.0


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    sizes = ("--max-num-seqs=8", "--max-num-batched-tokens=256")
    return ("--device=cuda", f"--model={folder}", "--dtype=float32", "--engine-stall-timeout-s=3", *sizes)


@asynccontextmanager
async def serving(*flags: str, fault: str = "") -> AsyncIterator[WorkerProcess]:
    async with await launch_worker(*flags, fault=fault) as worker:
        await worker.wait_logged("serving", START_TIMEOUT_S)
        yield worker


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        ("run_out_of_gpu_memory", "out_of_memory", "Tried to allocate 32768.00 GiB"),
        ("fail_on_gpu", "device", "device-side assert"),
        ("hang_on_gpu", "stalled", "engine_stall_timeout_s = 3 s"),
    ],
)
async def test_the_worker_ends_and_another_can_use_the_gpu(
    flags: tuple[str, ...], fault: str, reason: str, words: str
) -> None:
    async with serving(*flags, "--num-blocks=64", fault=fault) as worker, worker_stub(worker) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await collect(stub.Generate(generate_request([1, 2, 3], max_tokens=400), timeout=60))
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert await worker.wait_ended() == 1
        ended = worker.logged("the engine ended")
        assert ended["reason"] == reason
        assert words in ended["message"]
    async with serving(*flags, "--num-blocks=64") as worker, worker_stub(worker) as stub:
        completions, _ = await collect(stub.Generate(generate_request([1, 2, 3], max_tokens=20), timeout=60))
        assert len(completions[0].token_ids) == 20


async def test_a_cache_that_does_not_fit_is_refused_with_numbers(flags: tuple[str, ...]) -> None:
    worker = await launch_worker(*flags, "--num-blocks=100000000")
    assert await worker.wait_ended(START_TIMEOUT_S) == 1
    reason = worker.logged("cannot serve")["reason"]
    assert "out of GPU memory while allocating 100000000 KV blocks" in reason
    assert "lower num_blocks (100000000)" in reason


async def test_the_start_is_told_in_stages(flags: tuple[str, ...]) -> None:
    async with serving(*flags, "--gpu-memory-utilization=0.3") as worker:
        stages = [line["stage"] for line in worker.logs if line["event"] == "loading"]
        assert list(dict.fromkeys(stages)) == ["fetch", "weights", "memory", "graphs"]
        loaded = worker.logged("loaded")
        assert (loaded["device"], loaded["block_size"]) == ("cuda", 64)
        assert " graphs " in loaded["ready_in"]
