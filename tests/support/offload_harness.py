"""A scheduler, a runner whose KV is checked at every step, and the real use of a real store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.kv_client import KvClientOptions
from shoal.model_worker.kv_offload.memory import KvMemory
from shoal.model_worker.kv_offload.offload import KvOffload
from shoal.model_worker.kv_offload.options import OffloadOptions
from shoal.model_worker.request import Request
from shoal.model_worker.runner.cpu_kv_memory import CpuKvMemory
from shoal.model_worker.tenants import Accounts
from support.kv_store_running import RunningStore
from support.scheduler_harness import SchedulerHarness

BLOCK_BYTES = 8 * 4
"""Of a HistoryRunner's block of four tokens."""


class OffloadHarness(SchedulerHarness):
    """A harness with a store behind its cache, on the real clock. Made by `offloading`."""

    offload: KvOffload
    woken: threading.Event

    def run(self, request: Request, timeout_s: float = 20.0) -> int:
        """Runs a request to its end, checks its output, and says how many tokens of its prompt were cached."""
        self.add(request)
        return self.finish(request, timeout_s)

    def add(self, request: Request) -> None:
        """Queues a request, at this moment."""
        self.now_s = time.monotonic()
        self.scheduler.add(request)

    def finish(self, request: Request, timeout_s: float = 20.0) -> int:
        """`run`, of a request that was added before."""
        end_s = time.monotonic() + timeout_s
        while self.scheduler.has_work:
            assert time.monotonic() < end_s, "the request does not end"
            if self.turn() or self.pending:
                continue
            assert self.scheduler.waiting_until_s is not None
            self.woken.wait(max(0.0, self.scheduler.waiting_until_s - time.monotonic()))
            self.woken.clear()
        self.check_outputs(request)
        return self.started[request.stream_id]

    def turn(self) -> bool:
        """A step, if there is anything to compute. Every token takes a millisecond, as far as prices go."""
        self.now_s = time.monotonic()
        plan = self.step()
        num_tokens = plan.total_tokens if plan is not None else 0
        self.offload.report()
        self.offload.stepped(self.cache.take_events(), num_tokens, 1e-3 * num_tokens)
        return plan is not None

    @property
    def are_threads_alive(self) -> bool:
        """All that use the store beside the engine's."""
        readers = [*self.offload._reader.threads]
        bringers, writer = self.offload._prefetcher.threads, self.offload.writer
        return all(each.is_alive for each in readers) and all(each.is_alive for each in bringers) and writer.is_alive

    def flush(self) -> None:
        """Waits until what is to be stored is stored."""
        assert self.offload.writer.flush(20.0)
        self.offload.stepped([], 0, 0.0)
        self.offload.report()


@contextmanager
def offloading(
    store: RunningStore | Path,
    sizes: dict[str, Any] | None = None,
    memory: Callable[[Tensor], KvMemory] = CpuKvMemory,
    accounts: Accounts | None = None,
    timeout_s: float = 5.0,
    max_backoff_s: float = 0.02,
    **options: Any,
) -> Iterator[OffloadHarness]:
    """A harness whose blocks go to `store`, or to one with its socket in a folder. It waits long for answers: the
    machine may be busy."""
    h = OffloadHarness(now_s=time.monotonic(), **(sizes or {}))
    client = KvClientOptions(
        socket_path=str(store / "kv.sock" if isinstance(store, Path) else store.path),
        tenant="",
        fingerprint=b"f",
        block_bytes=BLOCK_BYTES,
        num_staging_blocks=4,
        timeout_s=timeout_s,
        min_backoff_s=max_backoff_s / 2,
        max_backoff_s=max_backoff_s,
    )
    defaults = OffloadOptions(client=client, lookup_wait_s=5.0, wait_budget_s=5.0)
    blocks = memory(torch.from_numpy(h.runner.kv))
    h.offload = KvOffload(replace(defaults, **options), h.cache, blocks, accounts=accounts)
    h.woken = threading.Event()
    h.offload.wake = h.woken.set
    h.use(h.offload)
    try:
        yield h
    finally:
        h.offload.close()
