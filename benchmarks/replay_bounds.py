"""What no choice of worker can beat on a trace: times to the first token of meshes that are better than any real one.

    python benchmarks/replay_bounds.py --trace mooncake_conversation_trace.jsonl.gz --replay results/replay.json

For each run in a document of `shoal bench replay` results, with the timing model of the same simulated H100s:

- `no_wait`: every prompt is computed the moment it arrives, at a worker of its own.
- `one_queue`: the run's workers take prompts from one queue, first come first served. No request waits while a worker
  is idle, so that what placement alone can do to waiting is done.

In both, a prompt finds whatever one LRU cache as large as all workers' together would hold, on whichever worker it
comes to, and nothing decodes beside it. `peer` is the better of `prefix_sticky` and `overlap_cost` in that run, and
`ratio` the peer over the bound: where that is below 1.176, a time 15% below the peer is out of reach beside such hits.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# PYTHONSAFEPATH keeps a script's folder off sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import Row, write_results
from shoal.model_worker.simulated_timing import LLAMA_8B_H100, StepWork
from shoal.simulator.oracle import oracle_hit_tokens
from shoal.simulator.trace import TraceRequest, arrivals_s, read_trace

RIVALS = ("prefix_sticky", "overlap_cost")
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "ttft_mean_s": lambda times: float(np.mean(times)),
    "ttft_p90_s": lambda times: float(np.percentile(times, 90)),
}


def prefill_s(num_tokens: int, num_cached: int) -> float:
    """Of one prompt, alone, in steps as large as the worker's."""
    gpu, seconds = LLAMA_8B_H100, 0.0
    while num_cached < num_tokens:
        step = min(gpu.max_num_batched_tokens, num_tokens - num_cached)
        seconds += gpu.timer.step_s(StepWork(0, 0, [(step, num_cached)]))
        num_cached += step
    return seconds


def waits_s(arrivals: Sequence[float], services: Sequence[float], num_workers: int) -> list[float]:
    """In one queue for all workers, first come first served."""
    free_s = [0.0] * num_workers
    waits = []
    for arrival, service in zip(arrivals, services, strict=True):
        start = max(arrival, heapq.heappop(free_s))
        heapq.heappush(free_s, start + service)
        waits.append(start - arrival)
    return waits


def bounds(trace: Sequence[TraceRequest], run: dict[str, Any]) -> list[Row]:
    """Rows of one run."""
    num_workers, gpu = run["workers"], LLAMA_8B_H100
    hits = oracle_hit_tokens(trace, num_blocks=gpu.num_blocks * num_workers, block_size=gpu.block_size)
    services = [prefill_s(request.input_length, hit) for request, hit in zip(trace, hits, strict=True)]
    waits = waits_s(arrivals_s(trace, run["speedup"]), services, num_workers)
    times = {"no_wait": services, "one_queue": [wait + s for wait, s in zip(waits, services, strict=True)]}
    rows = []
    for statistic, of in STATISTICS.items():
        peer = min(run["policies"][rival][statistic] for rival in RIVALS)
        for bound, seconds in times.items():
            value = of(seconds)
            name = f"{num_workers} workers, {run['load']:.0%}: {bound} {statistic}"
            rows.append(Row(name, value, "s", peer, peer / value))
    return rows


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Bounds of what choosing workers can do on a trace.")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--replay", type=Path, required=True, help="JSON with the runs to bound")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    trace = read_trace(args.trace)
    rows = [row for run in json.loads(args.replay.read_text())["runs"] for row in bounds(trace, run)]
    for row in rows:
        print(f"{row.name:44} {row.value:6.3f} s, peer {row.peer:6.3f}: {row.value / (row.peer or 1):5.2f} of it")
    if args.json:
        write_results(args.json, rows, {"trace": args.trace.name})


if __name__ == "__main__":
    main()
