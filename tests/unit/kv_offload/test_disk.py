"""Blocks that the store has on disk alone are brought to memory while their request waits."""

from __future__ import annotations

import asyncio
from pathlib import Path

from support.engine_requests import exactly, make_request
from support.kv_store_process import start_kv_store
from support.offload_harness import OffloadHarness, offloading

PROMPT = list(range(42))


async def test_after_a_restart_of_the_store_blocks_come_from_its_disk(tmp_path: Path) -> None:
    disk = (f"--disk-folder={tmp_path / 'disk'}", "--disk-bytes=67108864", "--disk-segment-bytes=4194304")
    with offloading(tmp_path) as first, offloading(tmp_path, tokens_per_s=1.0) as second:
        async with start_kv_store(tmp_path, *disk):
            await asyncio.to_thread(compute, first)
        async with start_kv_store(tmp_path, *disk):
            cached = await asyncio.to_thread(second.run, make_request(1, PROMPT, sampling=exactly(2)))
            assert cached == 40, second.offload.stats
            assert second.offload.stats.loaded_blocks == {"disk": 10}


def compute(h: OffloadHarness) -> None:
    h.run(make_request(1, PROMPT, sampling=exactly(2)))
    h.flush()
    assert h.offload.stats.stored_blocks == 10
