"""Loads that arrive layer by layer: the reader's side, the runner's side, and both with a store."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.blocks import block_keys
from shoal.kv_client.lease import Lease, Reading
from shoal.kv_store.store import Store
from shoal.model_worker.kv_offload.layer_feed import LayerFeed
from shoal.model_worker.kv_offload.memory import Loaded
from shoal.model_worker.runner.cuda_kv_memory import CudaKvMemory
from support.engine_requests import exactly, make_request
from support.kv_store_running import BLOCK_BYTES, ROOT, RunningStore, key, payload, running_store
from support.offload_harness import offloading

NUM_LAYERS = 16
LAYER_BYTES = BLOCK_BYTES // NUM_LAYERS
PROMPT = list(range(42))
NUM_FULL = 40
LAYERS_AT_ONCE = 4


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunningStore]:
    with running_store(tmp_path) as running:
        yield running


def make_feed(timeout_s: float = 10.0) -> LayerFeed:
    return LayerFeed(time.monotonic() + timeout_s, lambda: None)


def test_a_step_waits_for_each_layer_and_puts_itself_behind_it_once() -> None:
    orders: list[int] = []
    begun = threading.Event()
    feed = LayerFeed(time.monotonic() + 20, begun.set)
    passed: list[int] = []

    def run_step() -> None:
        for layer in range(6):
            feed.wait(layer)
            passed.append(layer)

    assert not feed.is_flowing
    feed.reached(2, lambda: orders.append(2))
    assert begun.is_set()
    assert feed.is_flowing
    step = threading.Thread(target=run_step)
    step.start()
    step.join(0.05)
    assert passed == [0, 1]
    feed.reached(6, lambda: orders.append(6))
    step.join(10)
    assert (passed, orders) == ([0, 1, 2, 3, 4, 5], [2, 6])


def test_a_step_is_put_behind_no_more_than_it_needs() -> None:
    feed, orders = make_feed(), list[int]()
    for num_layers in (1, 3, 4):
        feed.reached(num_layers, partial(orders.append, num_layers))
    feed.wait(0)
    assert orders == [1]
    feed.wait(1)
    assert orders == [1, 3]
    feed.wait(2)
    feed.wait(3)
    assert orders == [1, 3, 4]


@pytest.mark.parametrize("how", ["ends early", "is late"])
def test_nobody_waits_for_what_does_not_come(how: str) -> None:
    feed = make_feed(0.05 if how == "is late" else 60.0)
    feed.reached(1, lambda: None)
    if how == "ends early":
        threading.Timer(0.02, feed.finish).start()
    start_s = time.monotonic()
    feed.wait(5)
    feed.wait_end()
    assert time.monotonic() - start_s < 10


class NotingFeed(LayerFeed):
    """Keeps what the reader tells it."""

    def reached(self, num_layers: int, order: Callable[[], None]) -> None:
        self.ends = [*getattr(self, "ends", []), num_layers]
        super().reached(num_layers, order)


def test_a_few_layers_of_all_blocks_come_at_a_time_and_count_at_the_end(store: RunningStore) -> None:
    client = store.client()
    keys = [key(number) for number in range(1, 6)]
    client.put(keys, [payload(number) for number in range(1, 6)], parent_key=ROOT, namespace_key=ROOT)
    cache = torch.zeros((8, NUM_LAYERS, LAYER_BYTES), dtype=torch.uint8)
    feed, places = NotingFeed(time.monotonic() + 10, lambda: None), [6, 1, 3, 0, 2]
    memory = CudaKvMemory(cache, fed_bytes_at_once=LAYERS_AT_ONCE * LAYER_BYTES * len(places))
    assert memory.num_layers_fed == NUM_LAYERS
    wanted = torch.stack([torch.frombuffer(bytearray(payload(n)), dtype=torch.uint8) for n in range(1, 6)])
    wanted = wanted.view(5, NUM_LAYERS, LAYER_BYTES)
    with client.view(keys) as lease:
        steps = memory.feed(lease, places, None, feed)
        assert steps is not None
        assert next(steps) == (0, Reading.VERIFIED)
        feed.wait(NUM_LAYERS - 1)
        assert torch.equal(cache[places], wanted)
        assert list(steps) == [(5, Reading.VERIFIED)]
    assert not cache[[4, 5, 7]].any()
    assert feed.ends == [4, 8, 12, 16]
    client.close()


def test_a_flipped_bit_is_found_before_anything_counts(store: RunningStore) -> None:
    client = store.client()
    keys = [key(number) for number in range(1, 6)]
    client.put(keys, [payload(number) for number in range(1, 6)], parent_key=ROOT, namespace_key=ROOT)
    store.do(lambda running: flip(running, keys[3]))
    memory = CudaKvMemory(torch.zeros((8, NUM_LAYERS, LAYER_BYTES), dtype=torch.uint8))
    with client.view(keys) as lease:
        steps = memory.feed(lease, range(5), None, make_feed())
        assert steps is not None
        assert list(steps)[-1] == (3, Reading.CORRUPT)
    client.close()


def flip(store: Store, block_key: bytes) -> None:
    address = store.arena.address(store.index.slot[store.index.find(block_key)])
    ctypes.memset(address + 9, ctypes.string_at(address + 9, 1)[0] ^ 16, 1)


def test_memory_that_the_gpu_does_not_reach_is_loaded_as_a_whole(store: RunningStore) -> None:
    client = store.client()
    client.put([key(1)], [payload(1)], parent_key=ROOT, namespace_key=ROOT)
    memory = CudaKvMemory(torch.zeros((8, NUM_LAYERS, LAYER_BYTES), dtype=torch.uint8), direct=False)
    with client.view([key(1)]) as lease:
        assert memory.feed(lease, [0], None, make_feed()) is None
    client.close()


class PatientMemory(CudaKvMemory):
    """Of a HistoryRunner's cache, two tokens a layer. After its first layers a load waits for a step."""

    def __init__(self, kv: Tensor) -> None:
        super().__init__(kv.view(torch.uint8).view(len(kv), 2, -1), fed_bytes_at_once=1)

    def feed(
        self, lease: Lease, block_ids: Sequence[int], mark: object, feed: LayerFeed
    ) -> Generator[Loaded, None, None] | None:
        waited, wait = threading.Event(), feed.wait

        def note(layer: int) -> None:
            waited.set()
            wait(layer)

        feed.wait = note  # type: ignore[method-assign]
        steps = super().feed(lease, block_ids, mark, feed)
        assert steps is not None
        return self._paused(steps, waited)

    def _paused(self, steps: Generator[Loaded, None, None], waited: threading.Event) -> Generator[Loaded, None, None]:
        yield next(steps)
        assert waited.wait(10), "no step began"
        yield from steps


SLOW: dict[str, Any] = {"tokens_per_s": 50.0, "memory_bytes_per_s": 1e4, "by_layer": True}
"""Loads are expected to take long enough to hide the launches of a step, and computing longer than that."""


def test_a_request_begins_while_its_blocks_arrive(store: RunningStore) -> None:
    with offloading(store) as first, offloading(store, memory=PatientMemory, **SLOW) as second:
        request = make_request(1, PROMPT, sampling=exactly(4))
        first.run(request)
        first.flush()
        assert second.run(request) == NUM_FULL
        fed = [plan for plan in second.runner.plans if plan.feed is not None]
        assert [plan.total_tokens for plan in fed] == [2]
        assert second.offload.stats.loaded_blocks == {"memory": 10}
        assert second.run(make_request(2, PROMPT, sampling=exactly(2))) == NUM_FULL
        assert second.offload.stats.num_loads == 1, "what came is in the prefix cache"


def test_unless_it_is_wanted_loads_are_whole(store: RunningStore) -> None:
    whole = SLOW | {"by_layer": False}
    with offloading(store) as first, offloading(store, memory=PatientMemory, **whole) as second:
        request = make_request(1, PROMPT, sampling=exactly(4))
        first.run(request)
        first.flush()
        assert second.run(request) == NUM_FULL
        assert all(plan.feed is None for plan in second.runner.plans)


def test_a_wrong_block_costs_the_step_and_no_wrong_token(store: RunningStore) -> None:
    with offloading(store) as first, offloading(store, memory=PatientMemory, **SLOW) as second:
        request = make_request(1, PROMPT, sampling=exactly(4))
        first.run(request)
        first.flush()
        bad = block_keys(request.namespace_key, PROMPT, 4)[6]
        store.do(lambda running: flip(running, bad))
        assert second.run(request) == NUM_FULL, "as it was told when it began"
        assert second.offload.stats.failed_blocks == {"corrupt": 1}
        assert second.offload.stats.unused == {"corrupt": 1}
        assert second.offload.stats.loaded_blocks == {"memory": 6}
