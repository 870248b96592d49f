"""Nobody waits for somebody else's load, or for what the store brings for somebody else."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from google.protobuf.message import Message
from torch import Tensor

from shoal.kv_client import KvClientOptions
from shoal.kv_client.frames import Method
from shoal.kv_client.lease import Lease
from shoal.model_worker.kv_offload.memory import Loaded
from shoal.model_worker.kv_offload.prefetching import MAX_UNDER_WAY, Prefetch, Prefetcher
from shoal.model_worker.kv_offload.sessions import Sessions
from shoal.model_worker.kv_offload.stats import KvStoreStats
from shoal.model_worker.runner.cpu_kv_memory import CpuKvMemory
from shoal.model_worker.tenants import Accounts
from support.engine_requests import exactly, make_request
from support.eventually import wait_until
from support.kv_store_running import key, num_stored, running_store
from support.lying_store import LyingStore, lying_store
from support.offload_harness import BLOCK_BYTES, OffloadHarness, offloading

PROMPTS = {1: list(range(42)), 2: [7, *range(41)]}
NUM_FULL = 40


class ClosedMemory(CpuKvMemory):
    """Loads nothing before it is opened."""

    def __init__(self, kv_cache: Tensor) -> None:
        super().__init__(kv_cache)
        self.is_inside, self.is_open = threading.Event(), threading.Event()

    def load(self, lease: Lease, block_ids: Sequence[int], mark: object) -> Generator[Loaded, None, None]:
        self.is_inside.set()
        assert self.is_open.wait(20)
        yield from super().load(lease, block_ids, mark)


def add(h: OffloadHarness, number: int) -> None:
    h.add(make_request(number, PROMPTS[number], sampling=exactly(2)))


def test_a_question_is_answered_while_blocks_are_loaded(tmp_path: Path) -> None:
    memories: list[ClosedMemory] = []

    def closed(kv_cache: Tensor) -> ClosedMemory:
        memories.append(ClosedMemory(kv_cache))
        return memories[0]

    with (
        running_store(tmp_path) as store,
        offloading(store) as first,
        offloading(store, memory=closed, lookup_wait_s=1.0) as second,
    ):
        for number, prompt in PROMPTS.items():
            first.run(make_request(number, prompt, sampling=exactly(2)))
        first.flush()
        assert num_stored(store) == 20
        add(second, 1)
        assert second.woken.wait(10)
        assert not second.turn()
        [memory] = memories
        assert memory.is_inside.wait(10)
        add(second, 2)
        wait_until(lambda: second.offload.stats.num_lookups == 2, "both are answered", 0.9)
        memory.is_open.set()
        for number, prompt in PROMPTS.items():
            assert second.finish(make_request(number, prompt, sampling=exactly(2))) == NUM_FULL
        assert second.offload.stats.unused == {}


class Gate:
    """Holds the store's answers to prefetches back."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.may_answer = threading.Semaphore(0)

    def lie(self, method: Method, truth: Message) -> Message:
        if method == Method.PREFETCH:
            self.num_asked += 1
            assert self.may_answer.acquire(timeout=20)
        return truth


@contextmanager
def prefetching(store: LyingStore) -> Iterator[Prefetcher]:
    options = KvClientOptions(
        socket_path=str(store.path), tenant="", fingerprint=b"f", block_bytes=BLOCK_BYTES, timeout_s=5.0
    )
    sessions = [Sessions(options, Accounts(), 2) for _ in range(MAX_UNDER_WAY)]
    prefetcher = Prefetcher(sessions, KvStoreStats())
    try:
        yield prefetcher
    finally:
        prefetcher.close(5.0)


def test_a_few_prefetches_are_under_way_and_no_more(tmp_path: Path) -> None:
    gate = Gate()
    ended: list[int] = []
    with lying_store(tmp_path / "kv.sock", BLOCK_BYTES) as store, prefetching(store) as prefetcher:
        store.lie = gate.lie
        for number in range(MAX_UNDER_WAY + 2):
            assert prefetcher.post(Prefetch("a", [key(number)], (), 1.0, lambda: True, ended.append))
        wait_until(lambda: gate.num_asked == MAX_UNDER_WAY, "as many as may be", 10)
        assert not ended
        gate.may_answer.release()
        wait_until(lambda: gate.num_asked == MAX_UNDER_WAY + 1, "the next one has its turn", 10)
        assert len(ended) == 1
        for _ in range(MAX_UNDER_WAY + 1):
            gate.may_answer.release()
        wait_until(lambda: len(ended) == MAX_UNDER_WAY + 2, "all are told", 10)


def test_sessions_of_some_tenants_stay_open_and_others_get_theirs_anew(tmp_path: Path) -> None:
    with running_store(tmp_path) as store, offloading(store, max_tenants=2) as h:
        for number, tenant in enumerate(("a", "b", "c", "a"), 1):
            h.cache.clear()
            request = make_request(number, PROMPTS[1], sampling=exactly(2), tenant=tenant.encode())
            h.run(replace(request, tenant=tenant))
            h.flush()
        assert h.started[4] == NUM_FULL, "a came back"
        assert store.do(lambda running: len(running.sessions)) <= 3 * 2
