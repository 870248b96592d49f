"""The engine's side of the store, over a real one: what comes back is right, or is computed."""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from torch import Tensor

from shoal.blocks import block_keys
from shoal.kv_store.store import Store
from shoal.model_worker.kv_offload.memory import KvMemory
from shoal.model_worker.request import Request
from shoal.model_worker.runner.cpu_kv_memory import CpuKvMemory
from shoal.model_worker.runner.cuda_kv_memory import CudaKvMemory
from support.engine_requests import exactly, make_request
from support.kv_store_running import RunningStore, running_store
from support.offload_harness import offloading

PROMPT = list(range(42))
NUM_FULL = 40


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunningStore]:
    with running_store(tmp_path) as running:
        yield running


def request(stream_id: int, prompt: list[int] | None = None, max_tokens: int = 4, tenant: str = "a") -> Request:
    made = make_request(stream_id, prompt or PROMPT, sampling=exactly(max_tokens), tenant=tenant.encode())
    return Request(**{name: getattr(made, name) for name in Request.__dataclass_fields__} | {"tenant": tenant})


def num_stored(store: RunningStore) -> int:
    return store.do(lambda running: len(running.index))


def flip(store: Store, key: bytes) -> None:
    """Turns a bit in the arena."""
    address = store.arena.address(store.index.slot[store.index.find(key)])
    ctypes.memset(address + 9, ctypes.string_at(address + 9, 1)[0] ^ 16, 1)


@pytest.mark.parametrize("memory", [CpuKvMemory, partial(CudaKvMemory, staging_bytes=3 * 32)])
def test_blocks_that_one_device_computed_are_loaded_by_another(
    store: RunningStore, memory: Callable[[Tensor], KvMemory]
) -> None:
    with offloading(store, memory=memory) as first, offloading(store, memory=memory) as second:
        assert first.run(request(1)) == 0
        first.flush()
        assert num_stored(store) == 11  # the last one of prompt and output
        assert second.run(request(1)) == NUM_FULL
        stats = second.offload.stats
        assert stats.loaded_blocks == {"memory": 10}
        assert stats.loaded_bytes == 10 * 32
        second.flush()
        assert stats.stored_blocks == 0, "what came from the store is not stored again"


def test_the_devices_own_prefix_is_not_loaded(store: RunningStore) -> None:
    with offloading(store) as first, offloading(store) as second:
        first.run(request(1))
        first.flush()
        second.run(request(1, PROMPT[:17], 1))
        assert second.offload.stats.loaded_blocks == {"memory": 4}
        assert second.run(request(2)) == NUM_FULL
        assert second.offload.stats.loaded_blocks == {"memory": 10}


def test_part_of_a_prefix_is_a_hit(store: RunningStore) -> None:
    with offloading(store) as first, offloading(store) as second:
        first.run(request(1, PROMPT[:22], 1))
        first.flush()
        assert second.run(request(1)) == 20


def test_tenants_do_not_share(store: RunningStore) -> None:
    with offloading(store) as first, offloading(store) as second:
        first.run(request(1, tenant="a"))
        first.flush()
        assert second.run(request(1, tenant="b")) == 0


@pytest.mark.parametrize(("bad", "memory"), [(0, CpuKvMemory), (4, CpuKvMemory), (4, CudaKvMemory)])
def test_a_flipped_bit_is_never_served_and_what_precedes_it_is(
    store: RunningStore, bad: int, memory: Callable[[Tensor], KvMemory]
) -> None:
    with offloading(store) as first, offloading(store, memory=memory) as second:
        first.run(request(1, max_tokens=1))
        first.flush()
        key = block_keys(request(1).namespace_key, PROMPT, 4)[bad]
        store.do(lambda running: flip(running, key))
        assert second.run(request(1)) == 4 * bad
        assert second.offload.stats.failed_blocks == {"corrupt": 1}
        assert second.offload.stats.unused == {"corrupt": 1}


def test_blocks_are_stored_before_the_device_gives_them_up(store: RunningStore) -> None:
    with offloading(store, {"num_blocks": 24}, write_back="evicted") as h:
        h.run(request(1))
        h.flush()
        for number in range(2, 5):
            h.run(request(number, [number, *PROMPT]))
            h.flush()
        assert num_stored(store) >= 11
        assert h.run(request(9)) == NUM_FULL
        assert h.offload.stats.loaded_blocks.get("memory", 0) > 0


def test_with_reused_only_what_a_second_request_uses_is_stored(store: RunningStore) -> None:
    with offloading(store, {"num_blocks": 200}, write_back="reused") as h:
        h.run(request(1))
        h.flush()
        assert num_stored(store) == 0
        h.run(request(2, [*PROMPT[:20], 99, 98]))
        h.flush()
        assert num_stored(store) == 5


def test_a_block_given_out_while_it_is_stored_is_not_published(store: RunningStore) -> None:
    with offloading(store, {"num_blocks": 24}) as h:
        real, numbers = h.offload.writer._version_of, iter(range(100))
        h.offload.writer._version_of = lambda block_id: real(block_id) + (next(numbers) > 0)
        h.run(request(1))
        h.flush()
        assert num_stored(store) <= 1
        assert h.offload.stats.dropped_blocks["evicted"] >= 1


def test_a_store_that_goes_away_costs_nothing_but_hits(store: RunningStore) -> None:
    with offloading(store) as first, offloading(store) as second:
        first.run(request(1))
        first.flush()
        asyncio.run_coroutine_threadsafe(store.server.close(), store.loop).result(timeout=10)
        start_s = time.monotonic()
        assert second.run(request(1)) == 0
        assert time.monotonic() - start_s < 2.0
        assert "store" in second.offload.stats.problem
        assert second.run(request(2, [7, *PROMPT])) == 0
        assert second.offload.stats.unused["store_down"] >= 1


def test_a_full_queue_drops_and_says_so(store: RunningStore) -> None:
    with offloading(store, max_queued_blocks=4) as h:
        h.run(request(1))
        h.flush()
        assert h.offload.stats.dropped_blocks["queue_full"] > 0


def test_a_store_that_is_slower_than_computing_is_not_loaded_from(store: RunningStore) -> None:
    with offloading(store, wait_budget_s=0.0) as first:
        first.run(request(1))
        first.flush()
        first.cache.clear()
        assert first.run(request(2)) == 0, "no budget to wait with"
