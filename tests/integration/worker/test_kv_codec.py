"""Workers of SmolLM2 whose store has blocks in fp8, as processes: they share with each other and with nobody else."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from shoal.api.worker.v1 import worker_pb2
from support.kv_store_process import start_kv_store
from support.model import smollm2_path
from support.worker_process import WorkerProcess, greedy_tokens, launch_worker, start_worker, worker_stub

PROMPT = [1000 + 7 * number % 20_000 for number in range(120)]
NUM_CACHED = 112
BLOCK_BYTES = 2 * 30 * 3 * 16 * 64 * 4
"""In float32; fp8 has a byte an element, and one for each of 180 groups."""


async def layout_of(worker: WorkerProcess) -> str:
    async with worker_stub(worker) as stub:
        return str((await stub.GetInfo(worker_pb2.GetInfoRequest())).kv_layout)


@pytest.mark.slow
async def test_blocks_in_fp8_are_for_workers_that_use_fp8(tmp_path: Path) -> None:
    sizes = ("--memory-bytes=134217728", "--chunk-bytes=33554432")
    flags = ("--num-blocks=32", "--threads=1", "--dtype=float32", f"--kv-store-socket={tmp_path / 'kv.sock'}")
    async with start_kv_store(tmp_path, *sizes), contextlib.AsyncExitStack() as workers:
        first, second, plain = await asyncio.gather(
            *(
                workers.enter_async_context(
                    start_worker(f"--model={smollm2_path()}", *flags, "--kv-store-lookup-wait-ms=1000", codec)
                )
                for codec in ("--kv-codec=fp8", "--kv-codec=fp8", "--kv-codec=none")
            )
        )
        layouts = [await layout_of(worker) for worker in (first, second, plain)]
        # What gateways make keys of, so that a prefix is looked for where its codec is.
        assert layouts == [f"{layouts[2]}+fp8-e4m3-1", f"{layouts[2]}+fp8-e4m3-1", layouts[2]]
        computed, _ = await greedy_tokens(first, PROMPT)
        await first.wait_metric("kv_store_stored_blocks_total", lambda value: value >= 7)
        num_stored = first.metric("kv_store_stored_blocks_total")
        assert first.metric("kv_store_stored_bytes_total") == num_stored * (BLOCK_BYTES // 4 + 180)
        assert await greedy_tokens(plain, PROMPT) == (computed, 0), "another codec's blocks are nobody else's"
        loaded, cached = await greedy_tokens(second, PROMPT)
        assert cached == NUM_CACHED
        assert second.metric('kv_store_loaded_blocks_total{tier="memory"}') == 7
        assert loaded[0] == computed[0], "an error of some percent does not change a clear choice"
        await plain.wait_metric("kv_store_stored_blocks_total", lambda value: value >= 7)
        assert await greedy_tokens(first, PROMPT) == (computed, NUM_CACHED), "its own blocks are as they were computed"


async def test_a_codec_without_a_store_is_refused() -> None:
    async with await launch_worker(f"--model={smollm2_path()}", "--kv-codec=fp8") as worker:
        assert await worker.wait_ended() == 1
        assert "kv_store_socket" in str(worker.logs)
