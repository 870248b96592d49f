"""Which blocks a KV store keeps: hit ratios of its eviction policies by replay, beside the best possible; their speed.

    python benchmarks/kv_policy.py --trace mooncake_conversation_trace.jsonl.gz --json kv-policy.json

A request hits the blocks of its longest prefix that is held, and brings in the others; capacity is a count of blocks.
The hit ratio is hits over all blocks of all requests. `MIN` is Belady's algorithm, which knows the future, gives up the
block whose next use is furthest away, of equals the deepest, and takes nothing that never comes again; this is prefix
closed by itself, as no block comes again without those before it.

Rows `<policy>, <workload>, <capacity>` have MIN's hit ratio as `peer`. Rows `bar, ...` have the project's target, those
of `against LRU, ...` LRU's hit ratio. Rows of speed have the target as `peer`, with `ratio` above 1 when it is met.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shoal.kv_store.policy import POLICIES, Policy
from shoal.kv_store.policy.native_adaptive import NativeAdaptive
from shoal.kv_store.policy.python_adaptive import PythonAdaptive
from shoal.kv_store.policy.s3_fifo import S3Fifo
from shoal.simulator.trace import read_trace

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kv_workloads import WORKLOADS, Workload
from rows import Row, write_results

BARS = {3000: 0.125, 10_000: 0.225, 30_000: 0.326}
"""The best simple policy at each size, with one policy."""
TRACE_SIZES = (1000, 3000, 10_000, 30_000, 60_000)
MADE_UP_SIZES = (500, 2000, 4000)
MAKERS: dict[str, Callable[[int], Policy]] = {
    **POLICIES,
    "s3_fifo, 30% small": lambda num_blocks: S3Fifo(0.3),
}
SPEED_BLOCKS = 1 << 18
BYTES_A_BLOCK, SECONDS_A_BLOCK = 100.0, 8e-6


def key_of(block: int) -> bytes:
    """A key like a real one: the bytes of a hash."""
    return hashlib.sha256(block.to_bytes(16, "little")).digest()[:16]


def replay(policy: Policy, requests: Sequence[Sequence[bytes]], capacity: int) -> float:
    """The hit ratio. Blocks of the request that is served are pinned, as its reads and writes pin them."""
    num_hits = 0
    for keys in requests:
        num_found = 0
        while num_found < len(keys) and keys[num_found] in policy:
            num_found += 1
        num_hits += num_found
        policy.touch_all(keys[:num_found])
        _bring_in(policy, keys, num_found, capacity)
    return num_hits / sum(map(len, requests))


def _bring_in(policy: Policy, keys: Sequence[bytes], num_found: int, capacity: int) -> None:
    pinned, parent, is_open = set(keys), keys[num_found - 1] if num_found else None, True
    for key in keys[num_found:]:
        is_open &= policy.admit(key, 1, 1.0)
        if is_open and len(policy) >= capacity:
            is_open = policy.victim(lambda each: each not in pinned) is not None
        if is_open:
            policy.insert(key, 1, 1.0, parent)
            parent = key


def best_possible(requests: Sequence[Sequence[bytes]], capacity: int) -> float:
    """MIN's hit ratio; see the module."""
    never = len(requests)
    next_use: dict[bytes, int] = {}
    uses_after: list[list[int]] = []
    for number in range(len(requests) - 1, -1, -1):
        uses_after.append([next_use.get(key, never) for key in requests[number]])
        next_use.update(dict.fromkeys(requests[number], number))
    held: dict[bytes, int] = {}
    order: list[tuple[int, int, bytes]] = []
    num_hits = 0
    for keys, nexts in zip(requests, reversed(uses_after), strict=True):
        num_hits += next((depth for depth, key in enumerate(keys) if key not in held), len(keys))
        for depth, (key, use) in enumerate(zip(keys, nexts, strict=True)):
            held[key] = use
            heapq.heappush(order, (-use, -depth, key))
        while order and (len(held) > capacity or order[0][0] == -never):
            use, _, key = heapq.heappop(order)
            if held.get(key) == -use:
                del held[key]
    return num_hits / sum(map(len, requests))


def compare(name: str, workload: Workload, sizes: Sequence[int]) -> list[Row]:
    """Rows of all policies, and of the default one against LRU."""
    known: dict[int, bytes] = {block: key_of(block) for prompt in workload for block in prompt}
    requests = [[known[block] for block in prompt] for prompt in workload]
    rows = []
    for capacity in sizes:
        best = best_possible(requests, capacity)
        ratios = {policy: replay(make(capacity), requests, capacity) for policy, make in MAKERS.items()}
        rows += [_row(f"{policy}, {name}, {capacity}", found, best) for policy, found in ratios.items()]
        rows.append(_row(f"against LRU, {name}, {capacity}", ratios["adaptive"], ratios["lru"]))
        print(f"{name}, {capacity}: MIN {best:.4f}", *(f"{policy} {x:.4f}" for policy, x in ratios.items()), flush=True)
    return rows


def _row(name: str, found: float, peer: float) -> Row:
    return Row(name, round(found, 4), "hits/block", round(peer, 4), round(found / peer, 3) if peer else None)


def measure_speed(name: str, make: Callable[[int], Policy]) -> list[Row]:
    """Seconds a block of `touch_all` with 64 blocks, and of admit, victim and insert with a full tier."""
    keys = [key_of(number) for number in range(2 * SPEED_BLOCKS)]
    policy = make(SPEED_BLOCKS)
    for key in keys[:SPEED_BLOCKS]:
        policy.insert(key, 1, 1.0, None)
    batches = [keys[start % SPEED_BLOCKS :][:64] for start in range(0, 1000 * 977, 977)]

    def touch() -> None:
        for batch in batches:
            policy.touch_all(batch)

    touch_s = _timed(touch) / (64 * len(batches))

    def come_and_go() -> None:
        for key in keys[SPEED_BLOCKS : SPEED_BLOCKS + 50_000]:
            if policy.admit(key, 1, 1.0):
                policy.victim(lambda _: True)
                policy.insert(key, 1, 1.0, None)

    change_s = _timed(come_and_go) / 50_000
    return [
        Row(f"touch, batch of 64, {name}", touch_s * 1e6, "us/block", SECONDS_A_BLOCK * 1e6, SECONDS_A_BLOCK / touch_s),
        Row(
            f"admit, victim, insert, {name}",
            change_s * 1e6,
            "us/block",
            SECONDS_A_BLOCK * 1e6,
            SECONDS_A_BLOCK / change_s,
        ),
    ]


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_memory() -> list[Row]:
    """Of the default policy with a million blocks."""
    policy = NativeAdaptive(1 << 20)
    for number in range((1 << 20) - 1):
        policy.insert(number.to_bytes(16, "little"), 1, 1.0, None)
    used = policy.num_bytes / len(policy)
    return [Row("memory, adaptive", round(used, 1), "bytes/block", BYTES_A_BLOCK, BYTES_A_BLOCK / used)]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the results")
    parser.add_argument("--trace", type=Path, help="a trace in Mooncake's format; without it only made-up workloads")
    options = parser.parse_args()
    rows: list[Row] = []
    if options.trace is not None:
        workload = [list(request.hash_ids) for request in read_trace(options.trace)]
        rows += compare("conversation", workload, TRACE_SIZES)
        found = {row.name: row.value for row in rows}
        bars = [
            _row(f"bar, conversation, {size}", found[f"adaptive, conversation, {size}"], BARS[size]) for size in BARS
        ]
        rows = bars + rows
    for name, make_workload in WORKLOADS.items():
        rows += compare(name, make_workload(), MADE_UP_SIZES)
    for name, make in [*POLICIES.items(), ("adaptive in Python", PythonAdaptive)]:
        rows += measure_speed(name, make)
    rows += measure_memory()
    worst = min(
        (row for row in rows if row.name.startswith("against LRU") and row.ratio), key=lambda row: row.ratio or 0
    )
    print("worst against LRU:", worst.name, worst.ratio)
    settings = {"trace": options.trace.name if options.trace else None, "blocks for speed": SPEED_BLOCKS}
    write_results(options.json, rows, settings)


if __name__ == "__main__":
    main()
