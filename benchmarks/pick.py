"""What a pick costs a gateway, and what its index of blocks costs: 64 workers, 5 million blocks, one core.

    python benchmarks/pick.py --json pick.json

The gateway's own router, index and event feed without gRPC. The index is filled through the feeds from serialised
events; some prompts are known to two workers down to a part of their length. A pick includes turning token ids into
block keys, matching, ranking all workers and expecting the prompt at the one picked. `peer` is the project's
target: what a pick may cost at most, and how many blocks and picks a second there must be at least.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import KeyChain, block_keys, namespace_key
from shoal.gateway.routing.load import LoadTracker
from shoal.gateway.routing.policies import policy_of
from shoal.gateway.routing.prefix_index import PrefixIndex
from shoal.gateway.routing.router import PickRequest, Router
from shoal.gateway.workers.kv_events import KvEventFeed

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import Row, write_results

PARENT = namespace_key("m" * 64, "cuda-bf16-v1")
SHARED_TOKENS = 512
"""Every prompt starts with these, and every worker holds them."""
CHAIN_BLOCKS = 64
Prompt = list[int]


class Fleet:
    """Workers that tell one index what they hold."""

    def __init__(self, num_workers: int, max_keys: int) -> None:
        self.now_s = 0.0
        self.index = PrefixIndex(max_keys, clock=lambda: self.now_s)
        self.names = [f"10.0.{i // 250}.{i % 250}:50052" for i in range(num_workers)]
        self._feeds = {name: KvEventFeed(name, self.index) for name in self.names}
        self._seqs = dict.fromkeys(self.names, 0)
        for feed in self._feeds.values():
            feed.apply(_snapshot(0, [], complete=True))

    def ingest(self, batches: Sequence[tuple[str, bytes]]) -> float:
        """Applies serialised events; seconds it took."""
        parse = worker_pb2.SubscribeKvEventsResponse.FromString
        start = time.perf_counter()
        for name, raw in batches:
            self._feeds[name].apply(parse(raw))
        return time.perf_counter() - start

    def stored(self, name: str, keys: list[bytes]) -> tuple[str, bytes]:
        """The next event of a worker."""
        self._seqs[name] += 1
        stored = worker_pb2.KvStored(keys=keys, tier=worker_pb2.TIER_DEVICE)
        event = worker_pb2.SubscribeKvEventsResponse(epoch=1, seq=self._seqs[name], stored=stored)
        return name, event.SerializeToString()

    def restart(self, name: str, keys: list[bytes]) -> float:
        """The worker restarts and sends a snapshot; the longest time that one call took."""
        feed = self._feeds[name]
        parts = [_snapshot(0, keys[i : i + 4096], complete=i + 4096 >= len(keys)) for i in range(0, len(keys), 4096)]
        steps: list[Callable[[], object]] = [feed.forget, *(functools.partial(feed.apply, part) for part in parts)]
        longest_s = max(time_each(steps))
        self._seqs[name] = 0
        return longest_s


def _snapshot(seq: int, keys: list[bytes], *, complete: bool) -> worker_pb2.SubscribeKvEventsResponse:
    part = worker_pb2.KvSnapshot(keys=keys, tier=worker_pb2.TIER_DEVICE, complete=complete)
    return worker_pb2.SubscribeKvEventsResponse(epoch=1, seq=seq, snapshot=part)


def random_keys(num: int) -> list[bytes]:
    """Keys that nobody asks for."""
    data = os.urandom(16 * num)
    return [data[i : i + 16] for i in range(0, 16 * num, 16)]


def resident_bytes() -> int:
    """This process's memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill(fleet: Fleet, num_blocks: int, keys_per_event: int) -> float:
    """Blocks a second while `num_blocks` arrive in turn from all workers."""
    spent_s, done = 0.0, 0
    while done < num_blocks:
        batch = []
        for name in fleet.names:
            for _ in range(max(1, 512 // keys_per_event)):
                batch.append(fleet.stored(name, random_keys(keys_per_event)))
        done += len(batch) * keys_per_event
        spent_s += fleet.ingest(batch)
    return done / spent_s


def percentile(times_s: Sequence[float], share: float) -> float:
    """Microseconds below which `share` of `times_s` lie."""
    return sorted(times_s)[min(len(times_s) - 1, int(share * len(times_s)))] * 1e6


def time_each(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds of each call."""
    times = []
    for call in calls:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def make_prompts(fleet: Fleet, num: int, num_tokens: int, share: float, block_size: int, seed: int) -> list[Prompt]:
    """Prompts of which two workers hold the first `share`."""
    rng = random.Random(seed)
    shared = [random.Random(0).randrange(128_000) for _ in range(SHARED_TOKENS)]
    prompts = []
    for _ in range(num):
        prompt = shared + [rng.randrange(128_000) for _ in range(num_tokens - SHARED_TOKENS)]
        keys = block_keys(PARENT, prompt, block_size)
        known = keys[: int(share * len(keys))]
        for name in rng.sample(fleet.names, 2):
            fleet.ingest([fleet.stored(name, known)])
        prompts.append(prompt)
    for name in fleet.names:
        fleet.ingest([fleet.stored(name, block_keys(PARENT, shared, block_size))])
    return prompts


def picks(fleet: Fleet, prompts: Sequence[Prompt], block_size: int, repeats: int) -> list[float]:
    """Seconds of each pick."""
    loads = LoadTracker()
    rng = random.Random(1)
    for name in fleet.names:
        for _ in range(rng.randrange(1, 40)):
            loads.admit(name, rng.randrange(400))
    router = Router(fleet.index, loads, policy_of("shoal"))
    kv_tokens = dict.fromkeys(fleet.names, 400_000)

    def pick(prompt: Prompt) -> None:
        chain = KeyChain(PARENT, prompt, block_size)
        router.pick(PickRequest(fleet.names, chain, block_size, len(prompt), kv_tokens=kv_tokens))

    times = []
    for _ in range(repeats):
        times += time_each([functools.partial(pick, prompt) for prompt in rng.sample(prompts, len(prompts))])
        fleet.now_s += 60  # so that what was expected in one round does not count in the next
    return times


def measure(args: argparse.Namespace) -> list[Row]:
    """All rows."""
    rows: list[Row] = []

    def add(name: str, value: float, unit: str, target: float | None = None, *, less_is_better: bool = True) -> None:
        ratio = None if target is None else (target / value if less_is_better else value / target)
        rows.append(Row(name, round(value, 1), unit, target, None if ratio is None else round(ratio, 2)))
        said = "" if target is None else f"target {target:>11,.0f}  x{ratio:.2f}"
        print(f"{name:42} {value:14,.1f} {unit:10} {said}", flush=True)

    before = resident_bytes()
    fleet = Fleet(args.workers, 2 * args.blocks)
    rate = fill(fleet, args.blocks // 20, 1)
    add("ingest/1_key_an_event", rate, "blocks/s", 200_000, less_is_better=False)
    rate = fill(fleet, args.blocks - args.blocks // 20, CHAIN_BLOCKS)
    add("ingest/64_keys_an_event", rate, "blocks/s", 200_000, less_is_better=False)
    add("memory", (resident_bytes() - before) / len(fleet.index), "bytes/block", 200)
    for block_size in (16, 64):
        mixture: list[Prompt] = []
        for share in (0.0, 0.5, 1.0):
            prompts = make_prompts(fleet, args.prompts, 8192, share, block_size, seed=int(10 * share) + block_size)
            mixture += prompts
            times = picks(fleet, prompts, block_size, args.repeats)
            add(f"pick/8k/block_{block_size}/known_{share:.0%}/p50", percentile(times, 0.5), "us")
        times = picks(fleet, mixture, block_size, args.repeats)
        add(f"pick/8k/block_{block_size}/p50", percentile(times, 0.5), "us")
        add(f"pick/8k/block_{block_size}/p99", percentile(times, 0.99), "us", 1000)
        add(f"pick/8k/block_{block_size}/rate", 1 / statistics.fmean(times), "picks/s", 2000, less_is_better=False)
        prompts = make_prompts(fleet, 10, 100_000, 1.0, block_size, seed=7 + block_size)
        times = picks(fleet, prompts, block_size, args.repeats)
        add(f"pick/100k/block_{block_size}/p99", percentile(times, 0.99), "us")
        add(f"pick/100k/block_{block_size}/rate", 1 / statistics.fmean(times), "picks/s", 100, less_is_better=False)
    keys = random_keys(100_000)
    fleet.restart(fleet.names[0], keys)
    add("restart/100k_blocks/longest_call", fleet.restart(fleet.names[0], keys) * 1e6, "us")
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=5_000_000)
    parser.add_argument("--prompts", type=int, default=100, help="8k-token prompts of each kind")
    parser.add_argument("--repeats", type=int, default=10, help="picks of each prompt")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = measure(args)
    if args.json is not None:
        settings = {name: getattr(args, name) for name in ("workers", "blocks", "prompts", "repeats")}
        write_results(args.json, rows, settings)


if __name__ == "__main__":
    main()
