"""Blocks of a GPU's cache through a store and back, beside work on the same GPU."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shoal.kv_client import KvClient
from shoal.kv_client.lease import Reading
from shoal.model_worker.kv_offload.layer_feed import LayerFeed
from shoal.model_worker.kv_offload.memory import Loaded
from shoal.model_worker.runner.cuda_kv_memory import CudaKvMemory
from support.kv_store_running import BLOCK_BYTES, ROOT, key, running_store

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
NUM_BLOCKS = 24


@pytest.fixture
def client(tmp_path: Path) -> Iterator[KvClient]:
    with running_store(tmp_path) as running:
        client = running.client(num_staging_blocks=NUM_BLOCKS)
        yield client
        client.close()


def make_cache(seed: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randint(0, 256, (64, BLOCK_BYTES), dtype=torch.uint8, device="cuda", generator=generator)


@pytest.mark.parametrize("direct", [True, False])
def test_blocks_come_back_as_they_were_and_later_work_sees_them(client: KvClient, direct: bool) -> None:
    source, target = make_cache(1), make_cache(2)
    store = CudaKvMemory(source, bytes_at_once=5 * BLOCK_BYTES, direct=direct)
    load = CudaKvMemory(target, bytes_at_once=5 * BLOCK_BYTES, direct=direct)
    assert store.blocks_at_once == 5
    keys, block_ids = [key(number) for number in range(1, NUM_BLOCKS + 1)], list(range(40, 40 + NUM_BLOCKS))
    reserved = client.reserve(keys, parent_key=ROOT, namespace_key=ROOT)
    assert reserved is not None
    sums: dict[int, int] = {}
    for start in range(0, NUM_BLOCKS, 5):
        part = range(start, min(start + 5, NUM_BLOCKS))
        addresses = [reserved.addresses[at] for at in part]
        found = store.store([block_ids[at] for at in part], addresses, reserved.staging)
        sums |= dict(zip(part, found, strict=True))
    client.commit(replace(reserved), sums)
    kept = target.clone()
    places = list(range(0, 2 * NUM_BLOCKS, 2))
    torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]  # work that still writes to the blocks' last owners
    target[places] = 0
    mark = load.mark()
    with client.view(keys) as lease:
        steps = list(load.load(lease, places, mark))
    assert steps == [Loaded(min(end, NUM_BLOCKS), Reading.VERIFIED) for end in range(5, NUM_BLOCKS + 5, 5)]
    load.settle()
    later = target.clone()
    assert torch.equal(later[places], source[block_ids])
    others = [block_id for block_id in range(64) if block_id not in places]
    assert torch.equal(later[others], kept[others])


def test_layers_are_there_for_what_waits_for_them(client: KvClient) -> None:
    num_layers = 8
    source, target = (make_cache(seed).view(64, num_layers, -1) for seed in (3, 4))
    keys, block_ids = [key(number) for number in range(1, NUM_BLOCKS + 1)], list(range(40, 40 + NUM_BLOCKS))
    store, load = CudaKvMemory(source), CudaKvMemory(target)
    reserved = client.reserve(keys, parent_key=ROOT, namespace_key=ROOT)
    assert reserved is not None
    sums = store.store(block_ids, list(reserved.addresses.values()), reserved.staging)
    client.commit(reserved, dict(enumerate(sums)))
    places, flowing = list(range(NUM_BLOCKS)), threading.Event()
    feed = LayerFeed(time.monotonic() + 30, flowing.set)
    seen = torch.empty_like(target[places])

    def read() -> list[Loaded]:
        with client.view(keys) as lease:
            steps = load.feed(lease, places, load.mark(), feed)
            assert steps is not None
            with contextlib.closing(steps):
                found = list(steps)
        feed.finish()
        return found

    with ThreadPoolExecutor(1) as reader:
        loaded = reader.submit(read)
        assert flowing.wait(30)
        for layer in range(num_layers):
            feed.wait(layer)
            seen[:, layer] = target[places, layer]
        feed.wait_end()
        assert loaded.result(30)[-1] == Loaded(NUM_BLOCKS, Reading.VERIFIED)
    assert torch.equal(seen, source[block_ids])
