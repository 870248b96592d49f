"""The engine's side of the store, over a real one: what comes back is right, or is computed."""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from torch import Tensor

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.blocks import block_keys
from shoal.kv_client.lease import Lease
from shoal.kv_store.sessions import Session
from shoal.kv_store.store import Store
from shoal.model_worker.kv_offload.memory import KvMemory, Loaded
from shoal.model_worker.request import Request
from shoal.model_worker.runner.cpu_kv_memory import CpuKvMemory
from shoal.model_worker.runner.cuda_kv_memory import CudaKvMemory
from support.engine_requests import exactly, make_request
from support.eventually import wait_until
from support.kv_store_running import RunningStore, num_stored, running_store
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


def flip(store: Store, key: bytes) -> None:
    """Turns a bit in the arena."""
    address = store.arena.address(store.index.slot[store.index.find(key)])
    ctypes.memset(address + 9, ctypes.string_at(address + 9, 1)[0] ^ 16, 1)


@pytest.mark.parametrize(
    "memory", [CpuKvMemory, partial(CudaKvMemory, bytes_at_once=3 * 32), partial(CudaKvMemory, direct=False)]
)
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


def test_blocks_about_to_go_are_looked_for_as_blocks_are_taken_and_not_at_every_step(store: RunningStore) -> None:
    with offloading(store, {"num_blocks": 64}, write_back="evicted") as h:
        looks, steps = 0, 0
        real = h.cache.next_evicted

        def counted(limit: int) -> list[int]:
            nonlocal looks
            looks += 1
            return real(limit)

        h.cache.next_evicted = counted  # type: ignore[method-assign]
        for number in range(1, 13):
            h.add(request(number, [number, *PROMPT[:20]], max_tokens=16))
            while h.scheduler.has_work:
                steps += h.turn()
            h.check_outputs(request(number, [number, *PROMPT[:20]], max_tokens=16))
        h.flush()
        assert looks < steps / 4
        # 9 blocks of each of 12 requests could be found, and those that are not left were seen before they went.
        num_left = len(h.cache.next_evicted(64))
        stats = h.offload.stats
        assert num_left <= 64
        assert stats.stored_blocks + sum(stats.dropped_blocks.values()) >= 9 * 12 - num_left, stats


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


@pytest.mark.parametrize(("num_claimed", "reason"), [(10, "evicted"), (1_000_000, "store_down")])
def test_a_store_that_claims_to_have_what_it_has_not_costs_one_wait(
    store: RunningStore, num_claimed: int, reason: str
) -> None:
    claim = pb.LookupResponse(num_visible=num_claimed, num_in_memory=num_claimed)
    store.control.lookup = lambda *_: claim  # type: ignore[method-assign]
    with offloading(store) as h:
        start_s = time.monotonic()
        assert h.run(request(1)) == 0
        assert h.run(request(2, [7, *PROMPT])) == 0
        assert time.monotonic() - start_s < 5.0
        assert h.offload.stats.unused[reason] >= 1
        assert sum(h.offload.stats.unused.values()) == 2
        assert h.offload.stats.loaded_blocks == {}


@pytest.mark.parametrize("field", ["chunks", "slots", "generations", "checksums"])
def test_a_store_that_lies_about_where_blocks_are_is_not_believed(store: RunningStore, field: str) -> None:
    with offloading(store) as first:
        first.run(request(1))
        first.flush()
    acquire = store.control.acquire

    def lie(request: pb.AcquireRequest, session: Session | None = None) -> pb.AcquireResponse:
        answer = acquire(request, session)
        getattr(answer, field)[3] += 2
        return answer

    store.control.acquire = lie  # type: ignore[method-assign]
    with offloading(store) as second:
        assert second.run(request(1)) in (0, 12)  # its output is checked
        assert sum(second.offload.stats.unused.values()) == 1


def test_a_full_queue_drops_and_says_so(store: RunningStore) -> None:
    with offloading(store, max_queued_blocks=4) as h:
        h.run(request(1))
        h.flush()
        assert h.offload.stats.dropped_blocks["queue_full"] > 0


def test_a_device_that_computes_faster_than_a_store_answers_does_not_ask(store: RunningStore) -> None:
    with offloading(store, tokens_per_s=1e9) as h:
        h.run(request(1))
        h.flush()
        h.cache.clear()
        assert h.run(request(2)) == 0
        assert h.offload.stats.unused == {"not_worth_asking": 2}


def test_a_load_that_takes_longer_than_computing_is_not_begun(store: RunningStore) -> None:
    with offloading(store, tokens_per_s=60_000.0) as h:  # 0.7 ms for the prompt; a load is expected to take 0.8
        h.run(request(1))
        h.flush()
        h.cache.clear()
        assert h.run(request(2)) == 0
        assert sum(h.offload.stats.unused.values()) == 2
        assert h.offload.stats.num_loads == 0


def count_leases(running: Store) -> int:
    return sum(len(session.leases) for session in running.sessions.values())


@contextmanager
def hanging(store: RunningStore) -> Iterator[None]:
    """The store answers nothing meanwhile."""
    stopped, released = threading.Event(), threading.Event()

    def hang() -> None:
        stopped.set()
        released.wait(20)

    store.loop.call_soon_threadsafe(hang)
    assert stopped.wait(10)
    try:
        yield
    finally:
        released.set()


def test_a_store_that_hangs_before_it_answers_costs_one_wait(store: RunningStore) -> None:
    with offloading(store) as first, offloading(store, lookup_wait_s=0.1, wait_budget_s=0.25) as second:
        first.run(request(1))
        first.flush()
        second.run(request(9, [5, 6], 1))
        with hanging(store):
            start_s = time.monotonic()
            assert [second.run(request(number)) for number in (1, 2, 3)] == [0, NUM_FULL, NUM_FULL]
            assert second.run(request(4, [8, *PROMPT])) == 0
            assert time.monotonic() - start_s < 2.0
        assert second.offload.stats.unused == {"no_answer": 1, "store_down": 1}


def test_a_store_that_hangs_before_it_gives_blocks_costs_no_more_than_the_budget(store: RunningStore) -> None:
    with offloading(store) as first, offloading(store, wait_budget_s=0.3) as second:
        first.run(request(1))
        first.flush()
        asked = request(1)
        second.add(asked)
        assert second.woken.wait(10)
        with hanging(store):
            start_s = time.monotonic()
            assert second.finish(asked) == 0
            assert time.monotonic() - start_s < 2.0
            assert second.offload.stats.unused == {"late": 1}


def test_a_cancelled_load_gives_its_leases_back(store: RunningStore) -> None:
    with offloading(store) as first, offloading(store) as second:
        first.run(request(1))
        first.flush()
        second.add(request(1))
        assert second.woken.wait(10)
        with hanging(store):
            assert not second.turn()
            assert second.scheduler.cancel(1)
            assert not second.scheduler.has_work
            assert second.cache.num_free_blocks == second.cache.num_blocks
        assert second.run(request(2)) == NUM_FULL
        wait_until(lambda: store.do(count_leases) == 0, "no leases", 10)


def test_without_a_store_an_idle_worker_does_not_try_again_and_again(tmp_path: Path) -> None:
    with offloading(tmp_path, {"num_blocks": 24}) as h:
        h.run(request(1))
        for _ in range(100):
            h.woken.wait(0.01)
            h.woken.clear()
            h.turn()
        assert h.offload.stats.dropped_blocks["store"] < 10 * 11


def test_a_chain_whose_beginning_the_store_gave_up_is_stored_from_there_again(store: RunningStore) -> None:
    with offloading(store) as h:
        h.run(request(1))
        h.flush()
        client = store.client(block_bytes=32)
        assert client.evict(block_keys(request(1).namespace_key, PROMPT, 4)[:1]) == 11
        client.close()
        h.run(request(2, [*PROMPT, *range(50, 60)]))
        h.flush()
        assert h.offload.stats.dropped_blocks["orphan"] > 0
        h.run(request(3, [*PROMPT, *range(70, 80)]))
        h.flush()
        assert num_stored(store) >= 12


class GatedMemory(CpuKvMemory):
    """Stops in the middle of a load, at its third block, until it is let go on."""

    def __init__(self, kv_cache: Tensor) -> None:
        super().__init__(kv_cache)
        self.num_loaded = 0
        self.is_inside, self.may_go = threading.Event(), threading.Event()

    def load(self, lease: Lease, block_ids: Sequence[int], mark: object) -> Generator[Loaded, None, None]:
        steps = super().load(lease, block_ids, mark)
        while True:
            self.num_loaded += 1
            if self.num_loaded == 3:
                self.is_inside.set()
                assert self.may_go.wait(20)
            if (step := next(steps, None)) is None:
                return
            yield step


def test_nothing_is_written_to_blocks_after_their_request_was_cancelled(store: RunningStore) -> None:
    gates: list[GatedMemory] = []

    def gated(kv_cache: Tensor) -> GatedMemory:
        gates.append(GatedMemory(kv_cache))
        return gates[0]

    with offloading(store) as first, offloading(store, memory=gated) as second:
        first.run(request(1))
        first.flush()
        second.add(request(1))
        assert second.woken.wait(10)
        second.woken.clear()
        assert not second.turn()
        [gate] = gates
        assert gate.is_inside.wait(10)
        threading.Timer(0.05, gate.may_go.set).start()
        assert second.scheduler.cancel(1)
        assert gate.may_go.is_set(), "it waited for the block that was being written"
        assert second.woken.wait(10), "the reader has noticed"
        assert gate.num_loaded == 3
        assert second.run(request(2)) == NUM_FULL
