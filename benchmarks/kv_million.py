"""A million blocks in one store: memory of everything that is kept of them, finding a prefix, and starting again."""

from __future__ import annotations

import ctypes
import gc
import mmap
import multiprocessing
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from kv_disk import SEGMENT_BYTES, fill
from rows import Row
from shoal.kv_store.arena import Arena
from shoal.kv_store.disk import LogOptions, SegmentLog
from shoal.kv_store.disk_tier import DiskTier
from shoal.kv_store.policy import make_policy
from shoal.kv_store.store import Store, StoreLimits
from shoal.kv_store.worth import Worth

NUM_BLOCKS = 1_000_000
NUM_STARTS = 3
PREFIX_BLOCKS = 256
_PER_SEGMENT = SEGMENT_BYTES // 8192 - 1


def measure_million() -> list[Row]:
    """Each start in a process of its own: what another has freed and kept would make its growth too small."""
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        pool.apply(_write, (folder,))
        starts = [pool.apply(_measure_start, (folder,)) for _ in range(NUM_STARTS)]
    seconds, num_bytes, lookup_us = (statistics.median(values) for values in zip(*starts, strict=True))
    return [
        _at_most("1 million blocks in memory and on disk: index, log and policy", num_bytes, "bytes/block", 250),
        _at_most("1 million blocks, lookup of 256", lookup_us, "us", 300),
        _at_most("1 million blocks, restart until all are visible", seconds, "s", 3),
    ]


def _open_log(folder: str, *, retention: Worth | None = None) -> SegmentLog:
    options = LogOptions(min_payload_bytes=4096, checkpoint_interval_s=3600)
    capacity_bytes = (NUM_BLOCKS // _PER_SEGMENT + 8) * SEGMENT_BYTES * 2
    return SegmentLog(folder, capacity_bytes, SEGMENT_BYTES, 30.0, options=options, retention=retention)


def _write(folder: str) -> None:
    log = _open_log(folder)
    fill(log, NUM_BLOCKS, _PER_SEGMENT)
    log.checkpoint()
    log.close()


def _measure_start(folder: str) -> tuple[float, float, float]:
    """Seconds of the start, bytes per block once all are in memory as well, microseconds of a lookup."""
    before = _resident_bytes()
    start_s = time.perf_counter()
    store = _start(folder)
    seconds = time.perf_counter() - start_s
    _bring_to_memory(store)
    num_bytes = (_resident_bytes() - before) / NUM_BLOCKS
    lookup_us = _time_lookups(store)
    store.close()
    return seconds, num_bytes, lookup_us


def _start(folder: str) -> Store:
    """As a service starts. Of the arena nothing is taken before a block comes in."""
    store = Store(Arena(NUM_BLOCKS * 4096, 1 << 20, "off"), partial(make_policy, "adaptive"), StoreLimits())
    worth = Worth(store.index, lambda call: None, 0.01)
    parts = (store.memory, store.index, store.scopes, store.events, store.counters)
    tier = DiskTier(_open_log(folder, retention=worth), *parts, lambda call: None, lambda tenant: 1 << 62)
    worth.belong_to(tier)
    store.attach_disk(tier)
    if len(store.index) != NUM_BLOCKS:
        raise SystemExit(f"{len(store.index)} of {NUM_BLOCKS} blocks are there")
    return store


def _bring_to_memory(store: Store) -> None:
    """What is kept of a block in memory: its slot in the index, and the policy's record."""
    index, (scope,) = store.index, store.scopes.of_tenant("")
    for row in index.in_order():
        index.set_slot(row, row)
        parent = index.parent[row]
        scope.policy.insert(index.key(row), 4096, 0.01, index.key(parent) if parent else None)


def _time_lookups(store: Store) -> float:
    """Median microseconds."""
    index, (scope,) = store.index, store.scopes.of_tenant("")
    times = []
    for first in range(1, NUM_BLOCKS - PREFIX_BLOCKS, 9973):
        keys = [index.key(row) for row in range(first, first + PREFIX_BLOCKS)]
        start_s = time.perf_counter()
        if len(index.prefix(keys, scope.number)) != PREFIX_BLOCKS:
            raise SystemExit("the index lost a block")
        times.append(time.perf_counter() - start_s)
    return 1e6 * statistics.median(times)


def _resident_bytes() -> int:
    """Without what the allocator keeps of what was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def _at_most(name: str, value: float, unit: str, bar: float) -> Row:
    return Row(name, value, unit, bar, bar / value)
